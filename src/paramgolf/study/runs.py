"""Runs as parts of something larger: made, gone on with, or taken as they are."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from paramgolf.config import RunConfig, to_json
from paramgolf.errors import ConfigError, UserError
from paramgolf.pipeline.session import resume, start
from paramgolf.pipeline.takeover import best_source
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import read_json
from paramgolf.runtime.ranks import started_by_torchrun
from paramgolf.runtime.rundir import RunDir
from paramgolf.runtime.signals import Preempted, terminated


class Member(NamedTuple):
    """A run among others that differ in their seed."""

    path: Path
    seed: int
    results: dict[str, Any] | None
    """What its results.json holds; None while it is not finished."""
    failure: str = ""
    """What ended its last attempt, if that was an error."""

    @property
    def state(self) -> str:
        """One of "finished", "failed", "not finished"."""
        if self.results is not None:
            return "finished"
        return "failed" if self.failure else "not finished"


def flat(config: RunConfig) -> dict[str, Any]:
    """Every key by its full name, as the command line has it (with _)."""
    keys: dict[str, Any] = {}
    for name, value in to_json(config).items():
        if isinstance(value, dict):
            keys |= {f"{name}.{inner}": entry for inner, entry in value.items()}
        else:
            keys[name] = value
    return keys


def first_difference(
    a: RunConfig, b: RunConfig, but: Sequence[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first key in which two configurations differ, and its values; some keys may."""
    theirs = flat(b)
    for key, value in flat(a).items():
        if key not in but and value != theirs[key]:
            return key, value, theirs[key]
    return None


def require_configuration(path: Path, config: RunConfig) -> None:
    """Check that the run at `path`, if there is one, is of that configuration.

    Raises:
        UserError: naming the first key that differs.
    """
    if not RunDir(path).config_file.exists():
        return
    difference = first_difference(RunDir.open(path)[2], config)
    if difference is not None:
        key, there, wanted = difference
        raise UserError(
            f"{path} holds a run with {key} = {there!r}, not {wanted!r}: name another folder with "
            "--out"
        )


def require_one_process(command: str) -> None:
    """Refuse to make several runs among ranks, which join once.

    Raises:
        ConfigError: if torchrun started this process.
    """
    if started_by_torchrun():
        raise ConfigError(
            f"paramgolf {command} makes its runs in one process: on several ranks make each with "
            "`torchrun ... -m paramgolf run RECIPE --seed N --out DIR/seed-N`; then "
            f"`paramgolf {command}` takes them as they are"
        )


def read_run(path: Path, failure: str = "") -> Member:
    """The run at `path` as it is.

    Args:
        path: a run's directory.
        failure: what is known to have ended its last attempt.

    Raises:
        UserError: if there is no run.
    """
    run, _, config = RunDir.open(path)
    if run.results_file.exists() and run.stage_result("score") is not None:
        return Member(path, config.seed, read_json(run.results_file))
    return Member(path, config.seed, None, failure)


def run_or_resume(
    recipe: str, config: RunConfig, path: Path, reporter: Reporter, others: Sequence[Path] = ()
) -> Member:
    """Make the run of `config` at `path`, go on with it, or take it as it is if it is finished.

    What ends the run with an error (it diverged, its budget cannot be met) is kept in what this
    returns, so that other runs have their turn; a signal ends them all.

    Args:
        recipe: its name.
        config: of the run.
        path: its directory.
        reporter: the console.
        others: runs whose weights a new run takes over if they are what `config` would train.
    """
    run = RunDir(path)
    try:
        if not run.config_file.exists():
            _forget_earlier_runs()
            start(recipe, config, path, best_source(config, others), reporter)
        elif read_run(path).results is None:
            _forget_earlier_runs()
            resume(path, reporter)
    except UserError as error:
        if terminated():
            raise Preempted("stopped by SIGTERM; the same command again goes on") from error
        reporter.line(f"  failed: {error}")
        return Member(path, config.seed, None, str(error))
    return read_run(path)


def seeds_in(folder: Path) -> list[Path]:
    """The runs `seed-N` in a folder, in the order of their seeds."""
    found = [path for path in folder.glob("seed-*") if RunDir(path).config_file.is_file()]
    numbered = [(int(match[1]), path) for path in found if (match := _SEED.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


_SEED = re.compile(r"seed-(\d+)")


def _forget_earlier_runs() -> None:
    """Give memory back, and let every run compile for itself, as in a process of its own.

    Code of an earlier run would make this one's seconds shorter, and past a number of shapes
    PyTorch stops compiling.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()
