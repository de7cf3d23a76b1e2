"""The main job: stage after stage, each resumable, and the results of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from paramgolf import IMPORT_SECONDS
from paramgolf.config import RunConfig
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter, duration
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.files import write_json
from paramgolf.runtime.ledger import Ledger, account
from paramgolf.runtime.ranks import Ranks
from paramgolf.runtime.rundir import RunDir
from paramgolf.stages import adapt, pack, prepare, score, train
from paramgolf.stages.job import Job

STAGES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "prepare": prepare.run,
    "train": train.run,
    "adapt": adapt.run,
    "pack": pack.run,
    "score": score.run,
}
"""What a run does, in this order."""


def run_job(
    run: RunDir, recipe: str, config: RunConfig, reporter: Reporter, runtime: Runtime
) -> dict[str, Any]:
    """Run all stages that are not finished yet; returns what `results.json` holds.

    All ranks call this; rank 0 writes what there is to write.

    Raises:
        UserError: what a stage could not do; everything finished before is kept.
    """
    ranks, begun = runtime.ranks, False
    with run.locked() if ranks.main else nullcontext():
        for name, stage in STAGES.items():
            if ranks.from_main(run.stage_result(name) is not None):
                reporter.line(f"{name}: finished before")
                continue
            if name in ("train", "pack"):
                config.require_work_for(ranks.size)
            reporter.line(name)
            run.event("stage_started", stage=name)
            job = Job(config, run, runtime, reporter)
            reporter.status = _budget_status(run, config, job.ledger)
            if not begun:
                job.ledger.add("set-up: imports", IMPORT_SECONDS, earlier=IMPORT_SECONDS)
                begun = True
            record = stage(job)
            seconds = job.ledger.close()
            if ranks.main:
                run.finish_stage(name, {**record, "num_ranks": ranks.size, "seconds": seconds})
            for scored, score in record.get("scores", {}).items():
                run.event("score", of=scored, **score)
            run.event("stage_finished", stage=name, seconds=sum(seconds.values()))
            reporter.line(f"  done in {duration(sum(seconds.values()))}")
            ranks.barrier()
        results = collect_results(run, recipe, config)
        if ranks.main:
            write_json(run.results_file, results)
        if begun:
            run.event("run_finished")
    return results


def _budget_status(run: RunDir, config: RunConfig, ledger: Ledger) -> Callable[[], str]:
    """What tells, at any time of a stage, the current budget and what is spent of it."""
    before = _budgets(
        _added((run.stage_result(name) or {}).get("seconds", {}) for name in STAGES), config
    )
    limits = {
        "training": config.limits.training_seconds,
        "evaluation": config.limits.evaluation_seconds,
    }

    def status() -> str:
        current = ledger.current()
        if current is None:
            return ""
        phase, seconds = current
        budget = account(phase, config.adapt.text).budget
        if budget == "none":
            return "[no budget]"
        spent = duration(before[budget] + _budgets(seconds, config)[budget])
        limit = f" of {duration(limits[budget])}" if limits[budget] else ""
        return f"[{budget} {spent}{limit}]"

    return status


def collect_results(run: RunDir, recipe: str, config: RunConfig) -> dict[str, Any]:
    """Put the records of all stages together; the keys are documented in docs/results.md."""
    records = {name: run.stage_result(name) or {} for name in STAGES}
    prepared, packed = records["prepare"]["text"], records["pack"]
    seconds = _added(record.get("seconds", {}) for record in records.values())
    return {
        "recipe": recipe,
        "seed": config.seed,
        "corpus": {
            "source": prepared["source"],
            "sha256": prepared["corpus_sha256"],
            "tokenizer_sha256": prepared["tokenizer_sha256"],
            "tokens": {name: split["tokens"] for name, split in prepared["splits"].items()},
        },
        "num_ranks": {name: record.get("num_ranks", 1) for name, record in records.items()},
        "adapted_on": config.adapt.text,
        "parameters": records["train"]["parameters"],
        "steps": records["train"]["steps"],
        "stages": _merged(records, "scores"),
        "adaptation": records["adapt"]["epochs"],
        "bytes": packed["bytes"],
        "artifact_sha256": packed["artifact_sha256"],
        "raised_dampings": packed["raised_dampings"],
        "seconds": seconds,
        "budgets": _budgets(seconds, config),
        "tokens_per_second": _merged(records, "tokens_per_second"),
        "peak_gpu_bytes": records["train"]["peak_gpu_bytes"],
        "xz": records["score"]["xz"],
    }


def _merged(records: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    return {
        name: value for record in records.values() for name, value in record.get(key, {}).items()
    }


def _added(books: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for seconds in books:
        for phase, value in seconds.items():
            total[phase] = total.get(phase, 0.0) + value
    return total


def _budgets(seconds: dict[str, float], config: RunConfig) -> dict[str, float]:
    """Seconds by budget."""
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
) -> RunDir:
    """Create a run's directory, with text and weights of another run if one is named.

    Text and trained weights are taken over, and adapted ones where nothing about them differs.
    Rank 0 creates it; the others need to see it.

    Raises:
        UserError: if there is something at `path`, or a rank's machine does not share the folder.
    """
    ranks = ranks or Ranks()
    if ranks.main and from_run is None:
        RunDir.create(path, recipe, config)
    elif ranks.main and from_run is not None:
        from paramgolf.pipeline.takeover import create_from

        create_from(from_run, path, recipe, config)
    ranks.barrier()
    run = RunDir(path, keeps_events=ranks.main)
    if not run.config_file.exists():
        raise UserError(f"{path} is not on this machine: the ranks need one folder that all share")
    return run
