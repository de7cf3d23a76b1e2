"""Checks of what only the run itself can know: its results, stage files and events must agree.

Whoever made the run wrote all of them, so agreement proves nothing; but what was changed in one
place alone shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from paramgolf.compress.artifact import read
from paramgolf.config import RunConfig
from paramgolf.data.prepared import PreparedText
from paramgolf.errors import UserError
from paramgolf.pipeline.run import STAGES, collect_results
from paramgolf.recipes import RECIPES
from paramgolf.runtime.files import read_tensors, sha256_of_file
from paramgolf.runtime.ledger import OTHER, PHASES, account
from paramgolf.runtime.records import read_environment, read_quantization
from paramgolf.runtime.rundir import INCOMPLETE_EVENT, RunDir
from paramgolf.scoring.modes import score_modes
from paramgolf.verify.checks import Check, check, guarded, other_sums
from paramgolf.verify.measured import require_weights_size
from paramgolf.verify.recomputed import leaves
from paramgolf.verify.training_clock import Attempt, attempts_of, training_clock

_REQUIRED_PHASES = {
    "train": ("train: steps",),
    "pack": ("pack: Hessians", "pack: GPTQ", "pack: code weights", "pack: write"),
    "score": ("score: load artifact", "score: quantized", "score: sliding"),
}
_REPORTED_EVENTS = ("micro_batch_reduced", "budget_not_filled", INCOMPLETE_EVENT)
_MAX_SECONDS, _MAX_SHARE = 0.5, 0.01
"""How much the seconds of a stage and the time between its events may differ: a process may have to
wait for a core between measuring one and the other."""
_ROUNDING = 1e-6


def training_in_words(config: RunConfig, results: dict[str, Any]) -> str:
    """Return what a run says of its training, which an audit cannot recompute."""
    seconds = results["seconds"].get("train: steps", 0.0)
    return f"{results['steps']:,} steps of {config.train.batch_tokens:,} tokens in {seconds:,.1f} s"


def limits_in_words(recipe: str, config: RunConfig) -> str:
    """Return the budget and limits that a run is judged by.

    They are those of its own configuration; where a recipe of that name has others, it says so.
    """
    words = _limits(config)
    found = f"{', '.join(words[:-1])} and {words[-1]}"
    if recipe in RECIPES:
        usual = [own for own in _limits(RECIPES[recipe][1]) if own not in words]
        found += f" (recipe {recipe} has {', '.join(usual)})" if usual else ""
    return found


def _limits(config: RunConfig) -> list[str]:
    limits = config.limits
    seconds = {"training": limits.training_seconds, "evaluation": limits.evaluation_seconds}
    return [
        f"{config.pack.budget_bytes:,} bytes",
        *(
            f"{limit:,g} s of {name}" if limit else f"unlimited {name} time"
            for name, limit in seconds.items()
        ),
    ]


def books(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Iterator[Check]:
    """Yield the checks of results.json, stage files, events and checkpoints against each other."""
    return guarded(_books(run, config, results))


def _check(name: str, condition: str, good: bool, figure: str) -> Check:
    return check(name, condition, good, figure, "self-reported")


def _listed(name: str, condition: str, wrong: list[str], figure: str) -> Check:
    return _check(name, condition, not wrong, "; ".join(wrong) or figure)


def _books(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Iterator[Check]:
    files = {path.stem for path in (run.path / "stages").glob("*")}
    wrong = sorted(files ^ set(STAGES))
    figure = ", ".join(STAGES)
    yield _listed("stages are complete", "ledger", [f"stages/{name}" for name in wrong], figure)
    if set(STAGES) - files:
        return
    stages = {name: run.stage_result(name) or {} for name in STAGES}
    attempts = {name: attempts_of(run.read_events(), name) for name in STAGES}
    yield _follows(run, config, results)
    yield _sums(run, config, results)
    yield _as_in_the_events(run, stages, attempts)
    yield _phases(config, stages)
    yield _wall_clock(stages, attempts)
    yield training_clock(config, stages["train"], attempts["train"])
    yield _rates(run, config, stages)
    yield from _budgets(config, results)
    yield _weights(run, config, stages)
    yield _fallbacks(run, config, results)


def _follows(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Check:
    """Compare results.json with what the stage files lead to, to the last digit."""
    recipe = RunDir.open(run.path)[1]
    expected, found = (dict(leaves(v)) for v in (collect_results(run, recipe, config), results))
    missing = object()
    wrong = [
        ".".join(path)
        for path in expected | found
        if not _equal(expected.get(path, missing), found.get(path, missing))
    ]
    figure = f"{len(expected)} values are equal"
    return _listed("results follow from the stages", "ledger", wrong, figure)


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _sums(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Check:
    """Check that every score is its loss over its bytes, and that documents add up to it."""
    wrong: list[str] = []
    for stage, score in results["stages"].items():
        bits = score["loss_nats"] * score["tokens"] / math.log(2)
        if not _close(score["bpb"], bits / score["bytes"]):
            wrong.append(f"BPB of {stage}")
    documents, notes = read_tensors(run.documents)
    if notes["text_sha256"] != results["text"]["sha256"]:
        wrong.append("another text in documents.safetensors")
    if int(documents["bytes"].sum()) != results["text"]["bytes"]:
        wrong.append("bytes of the documents")
    for mode in score_modes(config.score.stride, config.score_first.learns):
        if other_sums(results["stages"][mode.stage], float(documents[mode.stage].sum())):
            wrong.append(f"losses of the documents, {mode.stage}")
    figure = f"{len(results['stages'])} scores, {len(documents['bytes']):,} documents"
    return _listed("scores add up", "ledger", wrong, figure)


def _as_in_the_events(
    run: RunDir, stages: dict[str, dict[str, Any]], attempts: dict[str, list[Attempt]]
) -> Check:
    """Compare scores, epochs, sizes and dampings with the events of each stage's last attempt."""
    wrong: list[str] = []
    for stage, result in stages.items():
        if not attempts[stage]:
            wrong.append(f"no events of {stage}")
            continue
        events = attempts[stage][-1].events
        told = {e["of"]: _without(e, "of") for e in events if e["event"] == "score"}
        if told != result.get("scores", {}):
            wrong.append(f"scores of {stage}")
        if stage == "adapt":
            told = [_without(e) for e in events if e["event"] == "adapt_epoch"]
            if told != result["epochs"]:
                wrong.append("epochs of adaptation")
        if stage == "pack":
            raised = {e["matrix"]: e["damping"] for e in events if e["event"] == "damping_raised"}
            if raised != result["raised_dampings"]:
                wrong.append("raised dampings")
            widths = {k: row["bin_width"] for k, row in read_quantization(run).items()}
            chosen = {"model_bytes": result["bytes"]["model"], "bin_widths": widths}
            packed = [_without(e, "limit_bytes") for e in events if e["event"] == "packed"]
            if chosen not in packed:
                wrong.append("size and bin widths of model.bin")
    figure = "scores, epochs, sizes and dampings are those of the events"
    return _listed("events tell the same", "ledger", wrong, figure)


def _without(event: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("time", "event", *names)}


def _phases(config: RunConfig, stages: dict[str, dict[str, Any]]) -> Check:
    """Check that every stage has its phases and no other stage's."""
    wrong: list[str] = []
    longest = 0.0
    for stage, result in stages.items():
        seconds: dict[str, float] = result["seconds"]
        required = (*_REQUIRED_PHASES.get(stage, ()), f"{stage}: {OTHER}")
        if stage == "score" and config.score_first.learns:
            required = (*required, "score: score_first")
        if stage == "adapt" and config.adapt.text != "none":
            required = (*required, "adapt: write")
        wrong += [f"missing: {phase}" for phase in required if phase not in seconds]
        prefixes = (stage, "set-up", *(["data"] if stage == "prepare" else []))
        for phase, value in seconds.items():
            if phase not in PHASES or phase.partition(":")[0] not in prefixes:
                wrong.append(f"{stage} has no phase {phase}")
            if not (math.isfinite(value) and value >= 0):
                wrong.append(f"{phase}: {value} s")
        longest = max(longest, seconds.get(f"{stage}: {OTHER}", 0.0))
    figure = f"at most {longest:.2f} s of a stage are between phases, and count in its budget"
    return _listed("all seconds in phases", "seconds", wrong, figure)


def _wall_clock(stages: dict[str, dict[str, Any]], attempts: dict[str, list[Attempt]]) -> Check:
    """Compare the seconds of every stage with its events: what they add up to, and their times."""
    wrong: list[str] = []
    largest = 0.0
    for stage, result in stages.items():
        seconds: dict[str, float] = result["seconds"]
        last = attempts[stage][-1]
        finished = [event for event in last.events if event["event"] == "stage_finished"]
        if len(finished) != 1:
            wrong.append(f"{stage} was not finished once")
            continue
        total = sum(seconds.values())
        if not abs(total - finished[0]["seconds"]) <= _ROUNDING:
            wrong.append(f"{stage}: {total:.3f} s in phases, {finished[0]['seconds']:.3f} s in all")
        # Before its first event: the imports, and the steps of earlier attempts.
        total -= seconds.get("set-up: imports", 0.0)
        if stage == "train":
            total -= seconds["train: steps"] - last.own_steps
        wall = finished[0]["time"] - last.events[0]["time"]
        if not abs(total - wall) <= max(_MAX_SECONDS, _MAX_SHARE * wall):
            wrong.append(f"{stage}: {total:.2f} s booked, {wall:.2f} s between its events")
        largest = max(largest, abs(total - wall))
    figure = f"seconds of stages and times of events differ by at most {largest:.2f} s"
    return _listed("seconds fit the events", "seconds", wrong, figure)


def _rates(run: RunDir, config: RunConfig, stages: dict[str, dict[str, Any]]) -> Check:
    """Derive tokens per second of adaptation and scoring from tokens and seconds."""
    score, adapt = stages["score"], stages["adapt"]
    expected: dict[str, float | None] = {}
    for mode in score_modes(config.score.stride, config.score_first.learns):
        seconds = score["seconds"][f"score: {mode.stage}"]
        expected[f"score_{mode.stage}"] = score["scores"][mode.stage]["tokens"] / seconds
    if config.adapt.text != "none":
        split = "adapt" if config.adapt.text == "adapt" else "val"
        length = config.model.seq_len
        tokens = (PreparedText.of(run).splits[split].tokens - 1) // length * length
        tokens *= config.adapt.epochs
        seconds = adapt["seconds"].get("adapt: steps", 0.0)
        expected["adapt_steps"] = tokens / seconds if seconds else None
    found = {**score["tokens_per_second"], **adapt.get("tokens_per_second", {})}
    wrong = sorted(
        name for name in expected | found if not _close(expected.get(name), found.get(name))
    )
    has_gpu = read_environment(run)["gpu"] is not None
    if (stages["train"]["peak_gpu_bytes"] is not None) > has_gpu:
        wrong.append("peak_gpu_bytes, without a GPU")
    figure = f"{len(found)} rates of adaptation and scoring"
    return _listed("rates follow from tokens and seconds", "seconds", wrong, figure)


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9)


def _budgets(config: RunConfig, results: dict[str, Any]) -> Iterator[Check]:
    limits = {
        "training": config.limits.training_seconds,
        "evaluation": config.limits.evaluation_seconds,
    }
    for budget, limit in limits.items():
        total = sum(
            seconds
            for phase, seconds in results["seconds"].items()
            if account(phase, config.adapt.text).budget == budget
        )
        name = f"{budget} budget"
        if not limit:
            figure = f"{total:.1f} s; the recipe sets no limit"
            yield Check(name, "seconds", "not applicable", figure, "self-reported")
        else:
            yield _check(name, "seconds", total <= limit, f"{total:.1f} s of {limit:.0f} s")


def _weights(run: RunDir, config: RunConfig, stages: dict[str, dict[str, Any]]) -> Check:
    """Check that weights in checkpoints/, where kept, are those that were trained and packed."""
    wrong: list[str] = []
    kept: list[str] = []
    adapts = config.adapt.text != "none"
    for stage, path in (("train", run.trained), ("adapt", run.adapted)):
        if not path.exists() or (stage == "adapt" and not adapts):
            continue
        kept.append(path.name)
        try:
            require_weights_size(path, config)
            if sha256_of_file(path) != stages[stage]["weights_sha256"]:
                wrong.append(f"{path.name} was changed after the stage {stage!r}")
                continue
            weights, notes = read_tensors(path)
        except UserError as error:
            wrong.append(str(error))
            continue
        if any(_own(stages[stage], key) != value for key, value in notes.items()):
            wrong.append(f"{path.name} belongs to other steps than the stage {stage!r}")
        if (stage == "adapt") == adapts:
            vectors = read(run.artifact).vectors
            if any(not torch.equal(weights[k].to(v.dtype), v) for k, v in vectors.items()):
                wrong.append(f"model.bin was not packed from {path.name}")
    figure = f"{', '.join(kept)} as trained and packed" if kept else "not kept"
    return _listed("weights in checkpoints", "ledger", wrong, figure)


def _own(train: dict[str, Any], key: str) -> Any:
    return train["seconds"]["train: steps"] if key == "seconds" else train[key]


def _fallbacks(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Check:
    """List all fallbacks; check that every matrix with raised damping is reported."""
    found = [event["event"] for event in run.read_events() if event["event"] in _REPORTED_EVENTS]
    reported = results["raised_dampings"]
    found += [f"damping raised: {name}" for name in reported]
    matrices = read_quantization(run)
    raised = {
        name: row["damping"]
        for name, row in matrices.items()
        if row["damping"] > config.pack.damping
    }
    wrong = sorted(k for k in raised | reported if raised.get(k) != reported.get(k))
    figure = (
        f"does not match quantization.json: {', '.join(wrong)}"
        if wrong
        else ", ".join(found) or "none"
    )
    return _check("fallbacks recorded", "ledger", not wrong, figure)
