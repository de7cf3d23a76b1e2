"""The audit's checks of files and records: sizes, hashes, the time ledger, fallbacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from paramgolf.config import RunConfig
from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import Provenance
from paramgolf.runtime.files import read_json, sha256_of_file
from paramgolf.runtime.ledger import OTHER, account
from paramgolf.runtime.rundir import INCOMPLETE_EVENT, RunDir
from paramgolf.verify.checks import Check, check

_REQUIRED_PHASES = {
    "train": ("train: steps",),
    "pack": ("pack: Hessians", "pack: GPTQ", "pack: code weights", "pack: write"),
    "score": ("score: load artifact", "score: quantized", "score: sliding"),
}
_REPORTED_EVENTS = ("micro_batch_reduced", "budget_not_filled", INCOMPLETE_EVENT)


def file_checks(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Iterator[Check]:
    """Yield all checks that need no model."""
    yield _file_sizes(run, config, results)
    yield _shards(run)
    yield _phases(run, config)
    yield from _budgets(config, results)
    yield _fallbacks(run, config, results)


def _file_sizes(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Check:
    total = run.artifact.stat().st_size + run.code.stat().st_size
    budget, reported = config.pack.budget_bytes, results["bytes"]["total"]
    figure = f"{total:,} bytes on disk, {reported:,} reported, budget {budget:,}"
    good = total == reported and total <= budget
    return check("files within the byte budget", "bytes", good, figure)


def _shards(run: RunDir) -> Check:
    """Compare the SHA-256 of every shard with the one in the provenance."""
    name = "shards match the provenance"
    if not run.provenance.exists():
        return check(name, "provenance", False, "no provenance file")
    prepared = PreparedText.of(run)
    wrong, count = [], 0
    for split, text in Provenance.load(run.provenance).texts.items():
        paths = prepared.shards(split, run.data)
        count += len(paths)
        found = [sha256_of_file(path) if path.exists() else "" for path in paths]
        if found != list(text.shards):
            wrong.append(split)
    figure = f"different shards: {', '.join(wrong)}" if wrong else f"{count} shards, by SHA-256"
    return check(name, "provenance", not wrong, figure)


def _phases(run: RunDir, config: RunConfig) -> Check:
    """Check that the required phases are present and hold (nearly) all seconds of every stage."""
    missing: list[str] = []
    longest = 0.0
    for stage in ("prepare", "train", "adapt", "pack", "score"):
        seconds: dict[str, float] = (run.stage_result(stage) or {}).get("seconds", {})
        required = _REQUIRED_PHASES.get(stage, ())
        if stage == "score" and config.score_first.learns:
            required = (*required, "score: score_first")
        if stage == "adapt" and config.adapt.text != "none":
            required = ("adapt: write",)
        missing += [phase for phase in required if not seconds.get(phase, 0) > 0]
        if f"{stage}: {OTHER}" not in seconds:
            missing.append(f"{stage}: {OTHER}")
        longest = max(longest, seconds.get(f"{stage}: {OTHER}", 0.0))
    if missing:
        return check("all seconds in phases", "seconds", False, f"missing: {', '.join(missing)}")
    figure = f"at most {longest:.2f} s of a stage are between phases, and count in its budget"
    return check("all seconds in phases", "seconds", True, figure)


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
            yield Check(name, "seconds", "not applicable", figure)
        else:
            yield check(name, "seconds", total <= limit, f"{total:.1f} s of {limit:.0f} s")


def _fallbacks(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Check:
    """List all fallbacks; check that every matrix with raised damping is reported."""
    found = [event["event"] for event in run.read_events() if event["event"] in _REPORTED_EVENTS]
    reported = set(results["raised_dampings"])
    found += [f"damping raised: {name}" for name in results["raised_dampings"]]
    matrices = read_json(run.quantization_file)
    raised = {name for name, row in matrices.items() if row["damping"] > config.pack.damping}
    wrong = sorted(raised ^ reported)
    figure = (
        f"does not match quantization.json: {', '.join(wrong)}"
        if wrong
        else ", ".join(found) or "none"
    )
    return check("fallbacks recorded", "ledger", not wrong, figure)
