"""The main job: stage after stage, each resumable, and the results of all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paramgolf.config import RunConfig, to_json
from paramgolf.console import Reporter, duration
from paramgolf.errors import ConfigError, UserError
from paramgolf.job import Job
from paramgolf.rundir import RunDir, write_json
from paramgolf.runtime import select_runtime
from paramgolf.stages import adapt, pack, prepare, score, train

STAGES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "prepare": prepare.run,
    "train": train.run,
    "adapt": adapt.run,
    "pack": pack.run,
    "score": score.run,
}
"""What a run does, in this order."""

_TRAINED_STAGES = ("prepare", "train")
_TRAINED_KEYS = ("seed", "data", "model", "train")


def run_job(run: RunDir, recipe: str, config: RunConfig, reporter: Reporter) -> dict[str, Any]:
    """Run all stages that are not finished yet; returns what `results.json` holds.

    Raises:
        UserError: what a stage could not do; everything finished before is kept.
    """
    runtime = select_runtime(config.device)
    with run.locked():
        for name, stage in STAGES.items():
            if run.record(name) is not None:
                reporter.line(f"{name}: finished before")
                continue
            reporter.line(name)
            run.event("stage_started", stage=name)
            job = Job(config, run, runtime, reporter)
            record = stage(job)
            seconds = job.ledger.seconds()
            run.finish(name, {**record, "seconds": seconds})
            run.event("stage_finished", stage=name, seconds=sum(seconds.values()))
            reporter.line(f"  done in {duration(sum(seconds.values()))}")
        results = collect_results(run, recipe, config)
        write_json(run.results_file, results)
    return results


def branch(source: RunDir, trained: RunConfig, target: RunDir, config: RunConfig) -> None:
    """Take over text and trained weights of another run, so that only the rest is run.

    Raises:
        UserError: if that run has not finished training.
        ConfigError: if the new configuration differs in anything that shaped those weights.
    """
    ours, theirs = to_json(config), to_json(trained)
    for key in _TRAINED_KEYS:
        if ours[key] != theirs[key]:
            names = (
                [n for n in ours[key] if ours[key][n] != theirs[key][n]] if key != "seed" else []
            )
            full = f"{key}.{names[0]}" if names else key
            raise ConfigError(
                f"{full} differs from that of {source.path}: only adapt, pack and score may change "
                "with --from"
            )
    for stage in _TRAINED_STAGES:
        if source.record(stage) is None:
            raise UserError(
                f"{source.path} has not finished the stage {stage!r}: --resume it first"
            )
    shutil.copytree(source.data, target.data)
    shutil.copy2(source.tokenizer, target.tokenizer)
    target.trained.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.trained, target.trained)
    for stage in _TRAINED_STAGES:  # last: a record says that its stage's files are in place
        record = source.record(stage)
        assert record is not None
        target.finish(stage, {**record, "taken_from": str(source.path.resolve())})


def collect_results(run: RunDir, recipe: str, config: RunConfig) -> dict[str, Any]:
    """Put the records of all stages together; the keys are documented in docs/results.md."""
    records = {name: run.record(name) or {} for name in STAGES}
    prepared, packed = records["prepare"]["text"], records["pack"]
    return {
        "recipe": recipe,
        "seed": config.seed,
        "corpus": {
            "source": prepared["source"],
            "sha256": prepared["corpus_sha256"],
            "tokenizer_sha256": prepared["tokenizer_sha256"],
            "tokens": {name: split["tokens"] for name, split in prepared["splits"].items()},
        },
        "adapted_on": config.adapt.text,
        "parameters": records["train"]["parameters"],
        "steps": records["train"]["steps"],
        "stages": _merged(records, "scores"),
        "adaptation": records["adapt"]["epochs"],
        "bytes": {
            "artifact": packed["artifact_bytes"],
            "budget": packed["budget_bytes"],
            "by_part": packed["bytes_by_part"],
        },
        "artifact_sha256": packed["artifact_sha256"],
        "raised_dampings": packed["raised_dampings"],
        "seconds": _merged(records, "seconds"),
        "tokens_per_second": _merged(records, "tokens_per_second"),
        "peak_gpu_bytes": records["train"]["peak_gpu_bytes"],
        "xz": records["score"]["xz"],
    }


def _merged(records: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    return {
        name: value for record in records.values() for name, value in record.get(key, {}).items()
    }


def new_run(recipe: str, config: RunConfig, path: Path, trained_by: Path | None = None) -> RunDir:
    """Create a run's directory, with the trained weights of another run if one is named."""
    source = RunDir.open(trained_by) if trained_by else None
    run = RunDir.create(path, recipe, config)
    if source is not None:
        branch(source[0], source[2], run, config)
    return run
