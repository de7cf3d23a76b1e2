"""The main job: its stages in order, each resumable, and the results of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from paramgolf.config import RunConfig
from paramgolf.errors import UserError
from paramgolf.runtime import signals
from paramgolf.runtime.console import Reporter, duration
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.files import write_json
from paramgolf.runtime.ledger import Ledger, account
from paramgolf.runtime.ranks import PREPARATION_SECONDS, SERIAL_SECONDS, Ranks
from paramgolf.runtime.rundir import RunDir
from paramgolf.runtime.startup import finish_imports, import_seconds
from paramgolf.scoring.modes import ORDER
from paramgolf.stages import adapt, pack, prepare, score, train
from paramgolf.stages.job import Job

finish_imports()

STAGES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "prepare": prepare.run,
    "train": train.run,
    "adapt": adapt.run,
    "pack": pack.run,
    "score": score.run,
}
"""The stages of a run, in order."""


def run_job(
    run: RunDir,
    recipe: str,
    config: RunConfig,
    reporter: Reporter,
    runtime: Runtime,
    until: str = "score",
) -> dict[str, Any]:
    """Run the stages up to `until` that are not finished yet.

    All ranks call this; rank 0 writes the files.

    Returns:
        The content of `results.json`; empty, and no such file, if a stage is left to be run.

    Raises:
        UserError: if a stage fails; what earlier stages wrote is kept.
    """
    ranks, worked = runtime.ranks, False
    signals.resume_with(run.path)
    with run.locked() if ranks.main else nullcontext():
        if ranks.main and run.takeover_file.exists():
            from paramgolf.pipeline.takeover import take_over

            take_over(run, config)
        names = list(STAGES)
        for name in names[: names.index(until) + 1]:
            if ranks.from_main(run.stage_result(name) is not None, PREPARATION_SECONDS):
                reporter.line(f"{name}: finished before")
                continue
            if name in ("train", "pack"):
                config.require_work_for(ranks.size)
            reporter.stage_started(name, config, run)
            job = Job(config, run, runtime, reporter)
            run.event("stage_started", stage=name)
            reporter.status = _budget_status(run, config, job.ledger)
            if not worked:
                seconds = import_seconds()
                job.ledger.add("set-up: imports", seconds, earlier=seconds)
                worked = True
            result = STAGES[name](job)
            for scored, score in result.get("scores", {}).items():
                run.event("score", of=scored, **score)
            seconds_by_phase = job.ledger.close(name)
            total = sum(seconds_by_phase.values())
            # Before the file, whose writing may take long: the audit compares the events' times
            # with the seconds.
            run.event("stage_finished", stage=name, seconds=total)
            if ranks.main:
                shared = {"num_ranks": ranks.size, "seconds": seconds_by_phase}
                run.finish_stage(name, {**result, **shared})
                reporter.stage_finished(name, result, total)
            ranks.barrier(PREPARATION_SECONDS if name == "prepare" else SERIAL_SECONDS)
        results = {}
        if ranks.from_main(run.stage_result("score") is not None):
            results = collect_results(run, recipe, config)
            if ranks.main:
                write_json(run.results_file, results)
            if worked:
                run.event("run_finished")
    signals.resume_with(None)
    return results


def _budget_status(run: RunDir, config: RunConfig, ledger: Ledger) -> Callable[[], str]:
    """Return a function that describes the budget of the current phase and what is spent of it.

    The description is empty if no budget has a limit.
    """
    before = _seconds_by_budget(
        _total_by_phase((run.stage_result(name) or {}).get("seconds", {}) for name in STAGES),
        config,
    )
    limits = {
        "training": config.limits.training_seconds,
        "evaluation": config.limits.evaluation_seconds,
    }

    def status() -> str:
        current = ledger.current()
        if current is None or not any(limits.values()):
            return ""
        phase, seconds = current
        budget = account(phase, config.adapt.text).budget
        if budget == "none":
            return "[not counted]"
        spent = duration(before[budget] + _seconds_by_budget(seconds, config)[budget])
        limit = f" of {duration(limits[budget])}" if limits[budget] else ""
        return f"[{budget} {spent}{limit}]"

    return status


def collect_results(run: RunDir, recipe: str, config: RunConfig) -> dict[str, Any]:
    """Combine the results of all stages; docs/results.md documents the keys."""
    by_stage = {name: run.stage_result(name) or {} for name in STAGES}
    prepared, packed = by_stage["prepare"]["text"], by_stage["pack"]
    val = prepared["splits"]["val"]
    seconds = _total_by_phase(result.get("seconds", {}) for result in by_stage.values())
    return {
        "recipe": recipe,
        "seed": config.seed,
        "corpus": {
            "source": prepared["source"],
            "sha256": prepared["corpus_sha256"],
            "tokenizer_sha256": prepared["tokenizer_sha256"],
            "tokens": {name: split["tokens"] for name, split in prepared["splits"].items()},
        },
        "text": {
            "sha256": val["text_sha256"],
            **{key: val[key] for key in ("bytes", "documents", "bytes_are")},
        },
        "tokenizer": by_stage["prepare"]["tokenizer"],
        "overlap": by_stage["prepare"]["overlap"],
        "order": ORDER,
        "num_ranks": {name: result.get("num_ranks", 1) for name, result in by_stage.items()},
        "adapted_on": config.adapt.text,
        "parameters": by_stage["train"]["parameters"],
        "steps": by_stage["train"]["steps"],
        "stages": _merged(by_stage, "scores"),
        "adaptation": by_stage["adapt"]["epochs"],
        "bytes": packed["bytes"],
        "artifact_sha256": packed["artifact_sha256"],
        "raised_dampings": packed["raised_dampings"],
        "seconds": seconds,
        "budgets": _seconds_by_budget(seconds, config),
        "tokens_per_second": _merged(by_stage, "tokens_per_second"),
        "peak_gpu_bytes": by_stage["train"]["peak_gpu_bytes"],
        "xz": by_stage["score"]["xz"],
    }


def _merged(by_stage: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    """The tables that stage results have under a key, as one table."""
    return {
        name: value for result in by_stage.values() for name, value in result.get(key, {}).items()
    }


def _total_by_phase(ledgers: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for seconds in ledgers:
        for phase, value in seconds.items():
            total[phase] = total.get(phase, 0.0) + value
    return total


def _seconds_by_budget(seconds: dict[str, float], config: RunConfig) -> dict[str, float]:
    total: dict[str, float] = {"training": 0.0, "evaluation": 0.0, "none": 0.0}
    for phase, value in seconds.items():
        total[account(phase, config.adapt.text).budget] += value
    return total


def new_run(
    recipe: str,
    config: RunConfig,
    path: Path,
    from_run: Path | None = None,
    ranks: Ranks | None = None,
    requested_seeds: Sequence[int] = (),
) -> RunDir:
    """Create a run's directory, with text and weights of another run if one is named.

    Text and trained weights are taken over, and adapted weights if they would be the same. Rank 0
    creates the directory; all ranks must see it.

    Raises:
        UserError: if `path` cannot become a run, or is not shared by the machines of all ranks.
    """
    ranks = ranks or Ranks()
    if ranks.main and from_run is None:
        RunDir.create(path, recipe, config, None, requested_seeds)
    elif ranks.main and from_run is not None:
        from paramgolf.pipeline.takeover import create_from

        create_from(from_run, path, recipe, config, requested_seeds)
    ranks.barrier(PREPARATION_SECONDS)
    run = RunDir(path, keeps_events=ranks.main)
    if not run.config_file.exists():
        raise UserError(
            f"{path} does not exist on this machine: all ranks need the same, shared directory"
        )
    return run
