"""The audit's look at files and books: bytes by `stat`, seconds by phase, fallbacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from paramgolf.config import RunConfig
from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import Provenance
from paramgolf.runtime.files import read_json, sha256_of_file
from paramgolf.runtime.ledger import OTHER, account
from paramgolf.runtime.rundir import RunDir

_NEEDED = {
    "train": ("train: steps",),
    "pack": ("pack: Hessians", "pack: GPTQ", "pack: code weights", "pack: write"),
    "score": ("score: load artifact", "score: quantized", "score: sliding"),
}
_SECONDS_APART = 0.5
_FALLBACKS = ("micro_batch_reduced", "budget_not_filled")


class _Values(NamedTuple):
    """What a check is made of: name, condition, outcome, figure."""

    name: str
    condition: str
    outcome: Literal["pass", "FAIL", "not applicable"]
    figure: str


def is_of(audit: dict[str, Any], results: dict[str, Any]) -> bool:
    """Whether what `audit.json` holds is of the artifact and the scores that a run has now."""
    return audit.get("artifact_sha256") == results["artifact_sha256"] and all(
        results["stages"].get(stage, {}).get(key) == value
        for stage, score in audit["scores"].items()
        for key, value in score.items()
    )


def books_checks(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Iterator[_Values]:
    """All checks that need no model."""
    yield _bytes(run, config, results)
    yield _shards(run)
    yield _phases(run, config)
    yield from _budgets(config, results)
    yield _fallbacks(run, config, results)


def _bytes(run: RunDir, config: RunConfig, results: dict[str, Any]) -> _Values:
    total = run.artifact.stat().st_size + run.code.stat().st_size
    budget, reported = config.pack.budget_bytes, results["bytes"]["total"]
    figure = f"{total:,} bytes by stat, {reported:,} reported, budget {budget:,}"
    good = total == reported and total <= budget
    return _values("files under the budget", "bytes", good, figure)


def _shards(run: RunDir) -> _Values:
    """The shards that are there are those in the provenance."""
    name = "training shards as booked"
    if not run.provenance.exists():
        return _values(name, "provenance", False, "no provenance file")
    prepared = PreparedText.of(run)
    wrong, count = [], 0
    for split, text in Provenance.load(run.provenance).texts.items():
        paths = prepared.shards(split, run.data)
        count += len(paths)
        found = [sha256_of_file(path) if path.exists() else "" for path in paths]
        if found != list(text.shards):
            wrong.append(split)
    figure = f"other shards: {', '.join(wrong)}" if wrong else f"{count} shards, SHA-256"
    return _values(name, "provenance", not wrong, figure)


def _phases(run: RunDir, config: RunConfig) -> _Values:
    """All seconds are under a phase, and the phases that there must be are there."""
    missing: list[str] = []
    most, worst = 0.0, ""
    for stage in ("prepare", "train", "adapt", "pack", "score"):
        record = run.stage_result(stage) or {}
        seconds: dict[str, float] = record.get("seconds", {})
        needed = _NEEDED.get(stage, ())
        if stage == "score" and config.score_first.learns:
            needed = (*needed, "score: score_first")
        if stage == "adapt" and config.adapt.text != "none":
            needed = ("adapt: write",)
        missing += [phase for phase in needed if not seconds.get(phase, 0) > 0]
        if OTHER not in seconds:
            missing.append(f"{OTHER} of {stage}")
        if seconds.get(OTHER, 0.0) > most:
            most, worst = seconds[OTHER], stage
    if missing:
        return _values("phases", "seconds", False, f"missing: {', '.join(missing)}")
    figure = f"at most {most:.2f} s of a stage ({worst}) under no phase (at most {_SECONDS_APART})"
    return _values("phases", "seconds", most <= _SECONDS_APART, figure)


def _budgets(config: RunConfig, results: dict[str, Any]) -> Iterator[_Values]:
    total = {"training": 0.0, "evaluation": 0.0}
    for phase, seconds in results["seconds"].items():
        budget = account(phase, config.adapt.text).budget
        if budget != "none":
            total[budget] += seconds
    limits = {
        "training": config.limits.training_seconds,
        "evaluation": config.limits.evaluation_seconds,
    }
    for budget, limit in limits.items():
        name = f"{budget} budget"
        if not limit:
            figure = f"{total[budget]:.1f} s; the recipe sets no limit"
            yield _Values(name, "seconds", "not applicable", figure)
        else:
            figure = f"{total[budget]:.1f} s of {limit:.0f} s"
            yield _values(name, "seconds", total[budget] <= limit, figure)


def _fallbacks(run: RunDir, config: RunConfig, results: dict[str, Any]) -> _Values:
    """The matrices that needed more damping are those reported; other fallbacks are listed."""
    found = [event["event"] for event in run.read_events() if event["event"] in _FALLBACKS]
    found += [f"damping raised: {name}" for name in results["raised_dampings"]]
    matrices = read_json(run.quantization_file)
    raised = {name for name, of in matrices.items() if of["damping"] > config.pack.damping}
    hidden = sorted(raised ^ set(results["raised_dampings"]))
    figure = f"not as booked: {', '.join(hidden)}" if hidden else ", ".join(found) or "none"
    return _values("fallbacks recorded", "books", not hidden, figure)


def _values(name: str, condition: str, good: bool, figure: str) -> _Values:
    return _Values(name, condition, "pass" if good else "FAIL", figure)
