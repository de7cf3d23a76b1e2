"""What the sections of a report say, from the files of a run."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.config import RunConfig, to_json
from paramgolf.data.provenance import IN_SAMPLE_SHARE
from paramgolf.model.layout import layout
from paramgolf.model.roles import EMBEDDING, MATRIX_NAMES
from paramgolf.recipes import RECIPES
from paramgolf.report import figures as plots
from paramgolf.report.svg import SERIES
from paramgolf.runtime.ledger import account
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify.checks import audit_is_current

_TITLES = {
    "ema": ("after EMA", "trained weights, averaged; full precision"),
    "adapted": ("after adaptation", "full precision"),
    "quantized": ("quantized", "the packed file, windows one after the other"),
    "sliding": ("sliding windows", "the packed file, every target with much context"),
    "score_first": ("score-first", "sliding, and learning from what is scored"),
}
_MEANINGS = {
    "held-out": "By the maker's record, this text did not shape the weights.",
    "score-first": "The predictor learned from this text, from every part only after its score. "
    "By the maker's record, it did not shape the weights before.",
    "in-sample": "The weights have learned from the scored text. "
    "This is no measure of unseen text, and not comparable with one.",
    "unverified": "Whether this text shaped the weights is not known: "
    "there is nothing to compare it with.",
}
_INTEGERS = (EMBEDDING, *MATRIX_NAMES)
_PART_COLORS = {"integers": SERIES[0], "code": SERIES[1], "rest": SERIES[5]}
_MIN_SHARE = 0.004  # of all seconds that gets a bar of its own


def verdict(audit: dict[str, Any] | None, results: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the audit found: "passed", "failed", "missing" or "stale", in words, with its checks."""
    if audit is None:
        return {"kind": "missing", "text": "not audited", "command": f"paramgolf audit {path}"}
    first, *notes = [line.removeprefix("verdict").strip() for line in audit["verdict"]]
    if not audit_is_current(audit, results):
        text = "audit.json is of another artifact or other scores than these"
        return {"kind": "stale", "text": text, "command": f"paramgolf audit {path}"}
    kind = "passed" if audit["passed"] else "failed"
    return {"kind": kind, "text": first, "notes": notes, "checks": audit["checks"]}


def scores(results: dict[str, Any]) -> dict[str, Any]:
    """Rows of the table of scores, the last of which is the result, and their waterfall."""
    rows, before = [], None
    for stage, score in results["stages"].items():
        title, explained = _TITLES[stage]
        change = None if before is None else score["bpb"] - before
        rows.append({"title": title, "explained": explained, "change": change, **score})
        before = score["bpb"]
    steps = [plots.Step(row["title"], row["bpb"], row["label"]) for row in rows]
    return {
        "rows": rows,
        "result": rows[-1] | {"meaning": _meaning(rows[-1])},
        "plot": plots.waterfall(steps),
    }


def _meaning(score: dict[str, Any]) -> str:
    """What the label of a score says, and the figure that it rests on."""
    meaning, share = _MEANINGS[score["label"]], score["overlap_share"]
    if share is None:
        return meaning
    return (
        f"{meaning} {100 * share:.2f} % of its sampled 13-word shingles occur in what shaped "
        f"them; up to {100 * IN_SAMPLE_SHARE:g} % counts as held-out."
    )


def overview(
    run: RunDir, config: RunConfig, results: dict[str, Any], environment: dict[str, Any]
) -> dict[str, Any]:
    """When, where, and on what the run was."""
    times = [event["time"] for event in run.read_events()]
    gpu = environment["gpu"] if config.device != "cpu" else None
    num_ranks = max(results["num_ranks"].values())
    threads = environment["cpu_threads"]
    device = gpu or f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "day": datetime.fromtimestamp(times[-1], UTC).strftime("%Y-%m-%d") if times else "",
        "device": f"{num_ranks} \u00d7 {device}" if num_ranks > 1 else device,
        "corpus": Path(results["corpus"]["source"]).name,
        "taken": _taken(run),
    }


def _taken(run: RunDir) -> list[tuple[str, str]]:
    """Stages that were taken over, and from where."""
    records = ((stage, run.stage_result(stage) or {}) for stage in ("prepare", "train", "adapt"))
    return [(stage, r["taken_from"]) for stage, r in records if "taken_from" in r]


def training(run: RunDir, config: RunConfig) -> dict[str, Any]:
    """The curve of the training loss; without one, why."""
    path, earlier = run.path, set[Path]()
    # Only the run that trained has the events; it may have been branched from more than once.
    # (Folders that were moved since may name each other.)
    while path not in earlier and (
        taken := (RunDir(path).stage_result("train") or {}).get("taken_from")
    ):
        earlier.add(path)
        path = Path(taken)
    points = training_points(RunDir(path).read_events())
    if len(points) < 2:
        there = (path / "events.jsonl").exists()
        why = (
            "fewer than two steps were logged" if there else f"{path}, which trained, is not there"
        )
        return {"plot": None, "why_not": why}
    last = points[-1]
    onset = recurrence_onset(points, config)
    return {
        "plot": plots.losses(points, onset),
        "onset": onset,
        "last": last,
        "num_points": len(points),
    }


def training_points(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The logged steps that led to the weights, of all attempts.

    What one did past the checkpoint from which the next went on is not among them.
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


def recurrence_onset(points: list[dict[str, Any]], config: RunConfig) -> plots.Onset | None:
    """When depth recurrence came on, by the schedule; None if it never did."""
    train, visits = config.train, config.model.loop_visits
    if visits == 1 or not any(point["recurrent"] for point in points):
        return None
    if not train.max_steps:
        budget = train.max_seconds - train.reserve_seconds
        return plots.Onset(train.recurrence_from * budget, visits)
    steps = [0, *(point["step"] for point in points)]
    seconds = [0.0, *(point["elapsed_seconds"] for point in points)]
    return plots.Onset(
        float(np.interp(train.recurrence_from * train.max_steps, steps, seconds)), visits
    )


def adaptation(results: dict[str, Any]) -> dict[str, Any]:
    """The curve by epoch, or none."""
    epochs, before = results["adaptation"], results["stages"]["ema"]
    if not epochs:
        return {"plot": None}
    step = plots.Step("after EMA", before["bpb"], before["label"])
    return {"plot": plots.adaptation(epochs, step), "epochs": epochs}


def sizes(results: dict[str, Any]) -> dict[str, Any]:
    """Bytes of what counts, by part."""
    size = results["bytes"]
    parts = {"code": size["code"], **size["by_part"]}
    rows = []
    for name, value in parts.items():
        kind = "integers" if name in _INTEGERS else "code" if name == "code" else "rest"
        text = f"{value:,}  ({100 * value / size['total']:.1f} %)"
        rows.append(plots.Bar(name, value, _PART_COLORS[kind], text))
    integers = sum(size["by_part"][name] for name in _INTEGERS)
    return {
        "plot": plots.bar_chart("Bytes by part", "bytes", rows),
        "integers": integers,
        "colors": _PART_COLORS,
    }


def seconds(config: RunConfig, results: dict[str, Any]) -> dict[str, Any]:
    """Seconds by phase and budget; short phases of a budget are put together."""
    by_phase = results["seconds"]
    total = sum(by_phase.values())
    rows: list[plots.Bar] = []
    short: dict[Any, list[tuple[str, float]]] = {}
    for name, value in by_phase.items():
        budget = account(name, config.adapt.text).budget
        if value < _MIN_SHARE * total:
            short.setdefault(budget, []).append((name, value))
        else:
            rows.append(_seconds_bar(name, value, budget))
    for budget, phases in short.items():
        alone = phases[0][0] if len(phases) == 1 else ""
        name = alone or f"{len(phases)} short ones ({_budget_name(budget)})"
        rows.append(_seconds_bar(name, sum(value for _, value in phases), budget))
    limits = config.limits
    return {
        "plot": plots.bar_chart("Seconds by phase", "seconds", rows),
        "total": total,
        "budgets": [
            (_budget_name(name), results["budgets"][name], plots.BUDGET_COLORS[name], limit)
            for name, limit in (
                ("training", limits.training_seconds),
                ("evaluation", limits.evaluation_seconds),
                ("none", 0.0),
            )
        ],
    }


def _budget_name(budget: str) -> str:
    return "in no budget" if budget == "none" else budget


def _seconds_bar(name: str, value: float, budget: Any) -> plots.Bar:
    text = f"{value:,.1f} s" if value >= 0.05 else "under 0.1 s"
    return plots.Bar(name, value, plots.BUDGET_COLORS[budget], text)


def quantization(
    config: RunConfig, results: dict[str, Any], matrices: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Errors by layer and role as a plot, entropies in bits a weight as a table."""
    shapes, _ = layout(config.model)
    entropies = {name: figures["entropy_bits"] for name, figures in matrices.items()}
    blocks = [bits for name, bits in entropies.items() if name.startswith("blocks.")]
    least, most = min(blocks), max(blocks)
    rows = []
    for layer in range(config.model.num_layers):
        cells = [entropies[f"blocks.{layer}.{name}"] for name in MATRIX_NAMES]
        shares = [(bits - least) / ((most - least) or 1) for bits in cells]
        rows.append((layer, list(zip(cells, shares, strict=True))))
    num_weights = sum(math.prod(shape) for shape in shapes.values())
    integers = sum(results["bytes"]["by_part"][name] for name in _INTEGERS)
    return {
        "plot": plots.quantization_errors(matrices),
        "roles": MATRIX_NAMES,
        "rows": rows,
        "embedding": matrices[EMBEDDING],
        "num_weights": num_weights,
        "bits_a_weight": 8 * integers / num_weights,
        "raised": results["raised_dampings"],
    }


def settings(recipe: str, config: RunConfig) -> dict[str, Any]:
    """Every key with its value, by section, and where it differs from the recipe of that name."""
    named = to_json(RECIPES[recipe][1]) if recipe in RECIPES else {}
    by_section: dict[str, list[dict[str, Any]]] = {"run": []}
    for section, values in to_json(config).items():
        whole = isinstance(values, dict)
        for key, value in values.items() if whole else [(section, values)]:
            full = f"{section}.{key}" if whole else key
            usual = (named.get(section) or {}).get(key) if whole else named.get(section)
            row = {"key": full, "value": value, "usual": usual, "changed": named and value != usual}
            by_section.setdefault(section if whole else "run", []).append(row)
    changed = [row for rows in by_section.values() for row in rows if row["changed"]]
    return {"sections": by_section, "changed": changed, "known": bool(named)}


def environment(values: dict[str, Any], results: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the table at the end."""
    corpus = results["corpus"]
    rows = [
        ("paramgolf", values["paramgolf"]),
        ("Python", values["python"]),
        ("platform", values["platform"]),
        ("GPU", values["gpu"] or "none"),
        ("CUDA", values["cuda"] or "none"),
        ("CPU threads", values["cpu_threads"]),
        *values["packages"].items(),
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
