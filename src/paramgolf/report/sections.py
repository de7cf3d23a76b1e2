"""Contents of a report's sections, from the files of a run."""

from __future__ import annotations

import math
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.checked import to_json
from paramgolf.config import RunConfig
from paramgolf.data.claims import described, shown_form
from paramgolf.data.fingerprints import RUN_LETTERS
from paramgolf.data.overlap import MAX_BYTES, MAX_DOCUMENTS
from paramgolf.model.layout import layout
from paramgolf.model.roles import EMBEDDING, MATRIX_NAMES
from paramgolf.recipes import RECIPES
from paramgolf.report import figures
from paramgolf.runtime.ledger import account
from paramgolf.runtime.rundir import INCOMPLETE_EVENT, RunDir
from paramgolf.scoring.modes import ORDER
from paramgolf.verify.checks import audit_is_current

TITLES = {
    "ema": ("after EMA", "trained weights, averaged; full precision"),
    "adapted": ("after adaptation", "full precision"),
    "quantized": ("quantized", "the packed file, consecutive windows"),
    "sliding": ("sliding windows", "the packed file, overlapping windows for more context"),
    "score_first": ("score-first", "the packed file, which learns from each part after scoring it"),
}
"""Title of every stage, in order, and what is scored."""
_MEANINGS = {
    "held-out": "According to the run's own record, the weights were not trained on this text.",
    "score-first": "The model learned from each part of this text, but only after scoring it. "
    "According to the run's own record, the weights were not trained on it before.",
    "in-sample": "The weights were trained on the scored text: this is not a score on unseen text "
    "and not comparable with one.",
    "unverified": "It is unknown whether the weights were trained on this text: there is no record "
    "to compare it with.",
}
_INTEGERS = (EMBEDDING, *MATRIX_NAMES)
_MIN_SHARE = 0.004  # of all seconds; shorter phases share one bar


def verdict(audit: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """Return the audit's verdict in words with its checks.

    Its kind is "passed", "failed", "unverified" (files are gone), "missing" or "stale" (of other
    files).
    """
    if audit is None:
        return {"kind": "missing", "text": "not audited", "command": f"paramgolf audit {path}"}
    first, *notes = [line.removeprefix("verdict").strip() for line in audit["verdict"]]
    if not audit_is_current(path):
        text = "audit.json is about other files than those in the folder"
        return {"kind": "stale", "text": text, "command": f"paramgolf audit {path}"}
    kind = "passed" if audit["passed"] else "failed" if audit["failed"] else "unverified"
    return {"kind": kind, "text": first, "notes": notes, "checks": audit["checks"]}


def scores(results: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of the table of scores, the last one as the result, and the chart's axis."""
    rows, before = [], None
    for stage, score in results["stages"].items():
        title, explained = TITLES[stage]
        change = None if before is None else score["bpb"] - before
        rows.append({"title": title, "explained": explained, "change": change, **score})
        before = score["bpb"]
    return {
        "rows": rows,
        "form": shown_form(results["tokenizer"]),
        "result": rows[-1] | {"meaning": _meaning(rows[-1])},
        "axis": figures.score_axis([row["bpb"] for row in rows]),
    }


def _meaning(score: dict[str, Any]) -> str:
    """Return what a score's label means, with the overlap that it is based on."""
    meaning, share = _MEANINGS[score["label"]], score["overlap_share"]
    if share is None:
        return meaning
    return (
        f"{meaning} {score['seen_documents']:,} of its {score['documents']:,} documents are seen "
        f"in the training texts, and {100 * share:.2f}\u00a0% of all runs of {RUN_LETTERS} "
        f"letters; up to {100 * MAX_DOCUMENTS:g}\u00a0% of the documents and "
        f"{100 * MAX_BYTES:g}\u00a0% of the bytes count as held-out."
    )


def overview(
    run: RunDir, config: RunConfig, results: dict[str, Any], environment: dict[str, Any]
) -> dict[str, Any]:
    """Return date, device and corpus of the run, and the stages it took from other runs."""
    events = run.read_events()
    times = [event["time"] for event in events]
    gpu = environment["gpu"] if config.device != "cpu" else None
    num_ranks = max(results["num_ranks"].values())
    threads = environment["cpu_threads"]
    device = gpu or f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "day": datetime.fromtimestamp(times[-1], UTC).strftime("%Y-%m-%d") if times else "",
        "device": f"{num_ranks} \u00d7 {device}" if num_ranks > 1 else device,
        "corpus": Path(results["corpus"]["source"]).name,
        "incomplete_events": any(event["event"] == INCOMPLETE_EVENT for event in events),
        "taken": [
            (stage, result["taken_from"])
            for stage in ("prepare", "train", "adapt")
            if "taken_from" in (result := run.stage_result(stage) or {})
        ],
    }


def training(run: RunDir, config: RunConfig, results: dict[str, Any]) -> dict[str, Any]:
    """Return the charts of the training loss, or the reason why there are none."""
    points = training_points(run.read_events())
    if len(points) < 2:
        return {"charts": None, "reason": "fewer than two steps were logged"}
    onset, visits = recurrence_onset(points, config), config.model.loop_visits
    note = None if onset is None else (onset, f"recurrence on, {visits} visits")
    validation = results["stages"]["ema"]
    return {
        "charts": figures.losses(points, note, validation["loss_nats"]),
        "onset": onset,
        "visits": visits,
        "last": points[-1],
        "num_points": len(points),
        "validation": validation,
    }


def training_points(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the logged steps that led to the weights, over all attempts.

    Steps that an attempt made after the checkpoint from which the next one resumed are left out.
    """
    points: list[dict[str, Any]] = []
    earlier: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "stage_started" and event["stage"] == "train":
            earlier, points = points, []
        elif event["event"] == "training_resumed":
            points = [point for point in earlier if point["step"] <= event["step"]]
        elif event["event"] == "train":
            points.append(event)
    return points


def recurrence_onset(points: list[dict[str, Any]], config: RunConfig) -> float | None:
    """Return after how many seconds the schedule switched on depth recurrence; None if never."""
    train = config.train
    if config.model.loop_visits == 1 or not any(point["recurrent"] for point in points):
        return None
    if not train.max_steps:
        budget = train.max_seconds - train.reserve_seconds
        return train.recurrence_from * budget
    steps = [0, *(point["step"] for point in points)]
    seconds = [0.0, *(point["elapsed_seconds"] for point in points)]
    return float(np.interp(train.recurrence_from * train.max_steps, steps, seconds))


def adaptation(results: dict[str, Any]) -> dict[str, Any]:
    """Return the charts by epoch; none without adaptation."""
    epochs, before = results["adaptation"], results["stages"]["ema"]
    if not epochs:
        return {"charts": None}
    return {"charts": figures.adaptation(epochs, before), "epochs": epochs}


def sizes(results: dict[str, Any]) -> dict[str, Any]:
    """Return the counted bytes by part."""
    size = results["bytes"]
    parts = {"code": size["code"], **size["by_part"]}
    if results["tokenizer"]["claim"] == "given":
        parts["tokenizer"] = size["tokenizer"]
    rows = []
    for name, value in parts.items():
        kind = "integers" if name in _INTEGERS else "code" if name == "code" else "rest"
        text = f"{value:,}  ({100 * value / size['total']:.1f} %)"
        rows.append(figures.Bar(name, value, kind, text))
    integers = sum(size["by_part"][name] for name in _INTEGERS)
    return {"bars": rows, "integers": integers, "tokenizer": described(results["tokenizer"])}


def seconds(config: RunConfig, results: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds by phase and by budget; short phases of a budget share one bar."""
    by_phase = results["seconds"]
    total = sum(by_phase.values())
    rows: list[figures.Bar] = []
    short: dict[Any, list[tuple[str, float]]] = {}
    for name, value in by_phase.items():
        budget = account(name, config.adapt.text).budget
        if value < _MIN_SHARE * total:
            short.setdefault(budget, []).append((name, value))
        else:
            rows.append(_seconds_bar(name, value, budget))
    for budget, phases in short.items():
        alone = phases[0][0] if len(phases) == 1 else ""
        name = alone or f"{len(phases)} short phases ({_budget_name(budget)})"
        rows.append(_seconds_bar(name, sum(value for _, value in phases), budget))
    limits = config.limits
    return {
        "bars": rows,
        "total": total,
        "budgets": [
            (_budget_name(name), results["budgets"][name], name, limit)
            for name, limit in (
                ("training", limits.training_seconds),
                ("evaluation", limits.evaluation_seconds),
                ("none", 0.0),
            )
        ],
    }


def _budget_name(budget: str) -> str:
    return "not counted" if budget == "none" else budget


def _seconds_bar(name: str, value: float, budget: Any) -> figures.Bar:
    text = f"{value:,.1f} s" if value >= 0.05 else "under 0.1 s"
    return figures.Bar(name, value, budget, text)


def quantization(
    config: RunConfig, results: dict[str, Any], matrices: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Return errors by layer and role as charts, and entropies in bits per weight as a table."""
    shapes, _ = layout(config.model)
    entropies = {name: figures["entropy_bits"] for name, figures in matrices.items()}
    blocks = [bits for name, bits in entropies.items() if name.startswith("blocks.")]
    lowest, highest = min(blocks), max(blocks)
    rows = []
    for layer in range(config.model.num_layers):
        cells = [entropies[f"blocks.{layer}.{name}"] for name in MATRIX_NAMES]
        shares = [(bits - lowest) / ((highest - lowest) or 1) for bits in cells]
        rows.append((layer, list(zip(cells, shares, strict=True))))
    num_weights = sum(math.prod(shape) for shape in shapes.values())
    integers = sum(results["bytes"]["by_part"][name] for name in _INTEGERS)
    return {
        "charts": figures.quantization_errors(matrices),
        "roles": MATRIX_NAMES,
        "rows": rows,
        "embedding": matrices[EMBEDDING],
        "num_weights": num_weights,
        "bits_per_weight": 8 * integers / num_weights,
        "raised": results["raised_dampings"],
    }


def commands(path: Path) -> list[tuple[str, str]]:
    """Return what the packed model can do: a caption and a command each."""
    run = shlex.quote(str(path.resolve()))
    return [
        ("Continue a text", f'paramgolf generate {run} --prompt "The following"'),
        ("Score any text", f"paramgolf score {run} notes.txt"),
        ("Compress a text", f"paramgolf compress {run} notes.txt --out notes.compressed"),
    ]


def settings(recipe: str, config: RunConfig) -> dict[str, Any]:
    """Return every key with its value, by section, and those that differ from the recipe's."""
    known = recipe in RECIPES
    defaults = to_json(RECIPES[recipe][1]) if known else {}
    by_section: dict[str, list[dict[str, Any]]] = {"run": []}
    for name, value in to_json(config).items():
        if isinstance(value, dict):
            section, prefix, values, usual = name, f"{name}.", value, defaults.get(name, {})
        else:
            section, prefix, values, usual = "run", "", {name: value}, defaults
        by_section.setdefault(section, []).extend(
            {
                "key": prefix + key,
                "value": entry,
                "usual": usual.get(key),
                "changed": known and entry != usual.get(key),
            }
            for key, entry in values.items()
        )
    changed = [row for rows in by_section.values() for row in rows if row["changed"]]
    return {"sections": by_section, "changed": changed, "known": known}


def environment(values: dict[str, Any], results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the table of the environment."""
    corpus = results["corpus"]
    rows = [
        ("paramgolf", values["paramgolf"]),
        ("Python", values["python"]),
        ("platform", values["platform"]),
        ("GPU", values["gpu"] or "none"),
        ("CUDA", values["cuda"] or "none"),
        ("CPU threads", values["cpu_threads"]),
        *values["packages"].items(),
        ("order of scoring", results.get("order", ORDER)),  # older runs do not say so
        ("ranks by stage", ", ".join(f"{k} {v}" for k, v in results["num_ranks"].items())),
        ("peak GPU memory", _gigabytes(results["peak_gpu_bytes"])),
        ("corpus", corpus["source"]),
        ("corpus SHA-256", corpus["sha256"]),
        ("tokenizer SHA-256", corpus["tokenizer_sha256"]),
        ("artifact SHA-256", results["artifact_sha256"]),
        ("tokens by split", ", ".join(f"{k} {v:,}" for k, v in corpus["tokens"].items())),
    ]
    return [(name, str(value)) for name, value in rows]


def _gigabytes(num_bytes: int | None) -> str:
    return "none" if num_bytes is None else f"{num_bytes / 1e9:.2f} GB"
