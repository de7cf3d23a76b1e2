"""Starting or resuming a run in this process: on its device, with the other ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch.distributed as dist

from paramgolf.codefile.running import running_file
from paramgolf.config import RunConfig
from paramgolf.errors import UserError
from paramgolf.pipeline.run import new_run, run_job
from paramgolf.runtime import ranks as distributed
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import Runtime, select_runtime, wants_gpu
from paramgolf.runtime.files import exclusive
from paramgolf.runtime.rundir import Listener, RunDir
from paramgolf.runtime.signals import Stopped
from paramgolf.runtime.watch import Watch

if TYPE_CHECKING:
    from paramgolf.pipeline.preflight import Finding


class Session(NamedTuple):
    """The device and ranks of this process, and where their errors are logged."""

    runtime: Runtime
    log_to: Callable[[Path], None]
    """Call it with a run's directory to write the errors of every rank there from then on."""


@contextmanager
def session(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Session]:
    """Join the other ranks if torchrun started several; an error in the block ends all of them.

    Raises:
        UserError: if the device does not exist or the ranks cannot be joined.
    """
    if not distributed.started_by_torchrun():
        yield Session(select_runtime(device), lambda _: None)
        return
    ranks = distributed.join(wants_gpu(device))
    watch = Watch(ranks)
    try:
        yield Session(select_runtime(device, ranks), watch.log_to)
        ranks.barrier()
    except BaseException as error:
        watch.end(error)
    watch.close()
    dist.destroy_process_group()


def start(
    recipe: str,
    config: RunConfig,
    out: Path,
    from_run: Path | None,
    reporter: Reporter,
    log: Callable[[RunDir], Listener] | None = None,
    requested_seeds: Sequence[int] = (),
    until: str = "score",
) -> dict[str, Any]:
    """Run a configuration in a new directory; return the content of `results.json`.

    Args:
        recipe: its name.
        config: the configuration.
        out: the new directory.
        from_run: a run whose text, and what else would be the same, is taken over.
        reporter: the console.
        log: opens a listener for the run's events, on rank 0.
        requested_seeds: all seeds of the study that this run belongs to, for environment.json.
        until: the last stage to run; before the last of all, nothing is returned.

    Raises:
        UserError: see `pipeline.run.new_run` and `pipeline.run.run_job`.
    """
    with session(config.device) as (runtime, log_to):
        config, out = runtime.ranks.from_main((config, out))
        config.require_work_for(runtime.ranks.size)
        if runtime.ranks.main and running_file() is None:  # a code file repeats a run
            from paramgolf.pipeline.preflight import preflight

            for finding in preflight(config, out, runtime.ranks.size, from_run):
                if finding.warning:
                    reporter.line(f"warning: {finding.text}")
        run = new_run(recipe, config, out, from_run, runtime.ranks, requested_seeds)
        log_to(out)
        reporter.line(f"paramgolf run {recipe} -> {out}")
        if log and runtime.ranks.main:
            run.listener = log(run)
        try:
            return run_job(run, recipe, config, reporter, runtime, until)
        except UserError as error:
            if runtime.ranks.main and not isinstance(error, Stopped):
                remove_unprepared(run)
            raise


def remove_unprepared(run: RunDir) -> None:
    """Free the name of a run that failed before its text was prepared: nothing can be resumed.

    A run that another process is working on stays.
    """
    with suppress(UserError), exclusive(run.path):
        if run.stage_result("prepare") is None:
            shutil.rmtree(run.path, ignore_errors=True)


def dry_run(config: RunConfig, out: Path, from_run: Path | None) -> list[Finding]:
    """Check that a run could succeed, without starting it; see `pipeline.preflight`.

    Raises:
        UserError: if it could not.
    """
    from paramgolf.pipeline.preflight import preflight

    with session(config.device) as (runtime, _):
        return preflight(config, out, runtime.ranks.size, from_run) if runtime.ranks.main else []


def resume(
    path: Path,
    reporter: Reporter,
    log: Callable[[RunDir], Listener] | None = None,
    until: str = "score",
) -> dict[str, Any]:
    """Resume the run at `path`; return the content of `results.json`. Arguments as in `start`.

    Raises:
        UserError: if `path` contains no run, and see `pipeline.run.run_job`.
    """
    _, recipe, config = RunDir.open(path)
    with session(config.device) as (runtime, log_to):
        log_to(path)
        reporter.line(f"paramgolf run {recipe} -> {path} (resumed)")
        run = RunDir(path, keeps_events=runtime.ranks.main)
        if log and runtime.ranks.main:
            run.listener = log(run)
        return run_job(run, recipe, config, reporter, runtime, until)
