"""The runs of a study: start them, resume them, or read them once they are finished."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from paramgolf.checked import to_json
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError, UserError
from paramgolf.pipeline.run import STAGES
from paramgolf.pipeline.session import resume, start
from paramgolf.pipeline.takeover import best_source
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.ranks import started_by_torchrun
from paramgolf.runtime.records import read_results
from paramgolf.runtime.rundir import RunDir
from paramgolf.runtime.schema import read_record
from paramgolf.runtime.signals import Stopped, received

_SEED_DIRECTORY = re.compile(r"seed-(\d+)")


class SeedRun(NamedTuple):
    """One of several runs that differ only in their seed."""

    path: Path
    seed: int
    results: dict[str, Any] | None
    """Contents of results.json, or what it will say of the stages that were asked for; None until
    these are finished."""
    failure: str = ""
    """The error that ended its last attempt, if one did."""
    named: bool = True
    """Whether it is among the runs that a command names; if not, it is only known as requested."""

    @property
    def state(self) -> str:
        """One of "finished", "failed", "not finished", "not named", "missing" (no such run)."""
        if self.results is not None:
            return "finished"
        if self.failure:
            return "failed"
        if not RunDir(self.path).config_file.exists():
            return "missing"
        return "not finished" if self.named else "not named"

    @property
    def reason(self) -> str:
        """Return why there is no score."""
        why = "no results.json" if self.state == "not finished" else "was requested"
        return f"{self.state}: {self.failure or why}"

    @property
    def text_sha256(self) -> str:
        """SHA-256 of the scored text of a finished run; empty if it is not recorded."""
        results = self.results or {}
        if "text" in results:
            return results["text"]["sha256"]
        path = RunDir(self.path).documents
        return read_tensors(path)[1].get("text_sha256", "") if path.exists() else ""

    @property
    def restores(self) -> str:
        """In which form the scored text comes back from its tokens; empty: not finished."""
        return self.results["tokenizer"]["restores"] if self.results else ""

    @property
    def requested_seeds(self) -> list[int]:
        """The seeds that were asked for together with this one, as written when it began."""
        path = self.path / "environment.json"
        if not path.exists():
            return []
        return read_record(path, {"requested_seeds?": [int]}, "restore it").get(
            "requested_seeds", []
        )


def different_forms(form: str, path: Path, other: str, another: Path) -> str:
    """Return why scores are not comparable whose tokenizers do not restore the same of a text."""
    forms = [f"{form!r} in {path}", f"{other!r} in {another}"]
    return (
        f"these scores are not comparable: the text is restored as {' and '.join(forms)}; a "
        "tokenizer that leaves something out has less to predict"
    )


def flat_config(config: RunConfig) -> dict[str, Any]:
    """Return every key of a configuration by its full name, SECTION.KEY, with its value."""
    keys: dict[str, Any] = {}
    for name, value in to_json(config).items():
        if isinstance(value, dict):
            keys |= {f"{name}.{inner}": entry for inner, entry in value.items()}
        else:
            keys[name] = value
    return keys


def first_difference(
    a: RunConfig, b: RunConfig, ignore: Sequence[str] = ()
) -> tuple[str, Any, Any] | None:
    """Return the first key whose values differ, with its value in `a` and in `b`; or None."""
    others = flat_config(b)
    for key, value in flat_config(a).items():
        if key not in ignore and value != others[key]:
            return key, value, others[key]
    return None


def require_configuration(path: Path, config: RunConfig) -> None:
    """Check that the run at `path`, if one exists, has this configuration.

    Raises:
        UserError: naming the first key that differs.
    """
    if not RunDir(path).config_file.exists():
        return
    difference = first_difference(RunDir.open(path)[2], config)
    if difference is not None:
        key, found, wanted = difference
        raise UserError(
            f"{path} contains a run with {key} = {found!r}, not {wanted!r}: name another "
            "directory with --out"
        )


def require_one_process(command: str) -> None:
    """Refuse to make several runs under torchrun, whose ranks can join only once.

    Raises:
        ConfigError: if torchrun started this process.
    """
    if started_by_torchrun():
        raise ConfigError(
            f"`paramgolf {command}` makes its runs in one process: on several ranks make each with "
            "`torchrun ... -m paramgolf run RECIPE --seed N --out DIR/seed-N`; then "
            f"`paramgolf {command}` uses them as they are"
        )


def read_run(path: Path, failure: str = "", until: str = "score") -> SeedRun:
    """Read the run at `path` in whatever state it is.

    Args:
        path: a run directory.
        failure: the error that ended its last attempt, if known.
        until: the last stage that is asked for.

    Raises:
        UserError: if `path` contains no run.
    """
    run, _, config = RunDir.open(path)
    if until != "score":
        results = _results_until(run, until)
    elif run.results_file.exists() and run.stage_result("score") is not None:
        results = read_results(run)
    else:
        results = None
    return SeedRun(path, config.seed, results, failure if results is None else "")


def _results_until(run: RunDir, until: str) -> dict[str, Any] | None:
    """Return those keys of results.json that follow from the stages up to `until`.

    None while one of them is not finished.
    """
    by_stage: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        result = run.stage_result(stage)
        if result is None:
            return None
        by_stage[stage] = result
        if stage == until:
            break
    val = by_stage["prepare"]["text"]["splits"]["val"]
    found: dict[str, Any] = {
        "text": {
            "sha256": val["text_sha256"],
            **{key: val[key] for key in ("bytes", "documents", "bytes_are")},
        },
        "tokenizer": by_stage["prepare"]["tokenizer"],
        "steps": by_stage["train"]["steps"],
        "stages": {},
        "tokens_per_second": {},
        "seconds": {},
    }
    for result in by_stage.values():
        found["stages"] |= result.get("scores", {})
        found["tokens_per_second"] |= result.get("tokens_per_second", {})
        for phase, seconds in result["seconds"].items():
            found["seconds"][phase] = found["seconds"].get(phase, 0.0) + seconds
    return found | {key: value for key, value in by_stage.get("pack", {}).items() if key == "bytes"}


def run_or_resume(
    recipe: str,
    config: RunConfig,
    path: Path,
    reporter: Reporter,
    sources: Sequence[Path] = (),
    requested_seeds: Sequence[int] = (),
    until: str = "score",
) -> SeedRun:
    """Start the run of `config` at `path`, resume it, or read it if it is finished.

    An error that ends the run (it diverged, its budget cannot be met) is returned as the run's
    failure, so that other runs still get their turn; a signal ends them all.

    Args:
        recipe: name of the recipe.
        config: configuration of the run.
        path: its directory.
        reporter: the console.
        sources: runs from which a new one takes over the text and the weights that would be the
            same.
        requested_seeds: all seeds that were asked for, which a new run records.
        until: the last stage to run.
    """
    run = RunDir(path)
    try:
        if not run.config_file.exists():
            _free_memory()
            source = best_source(config, sources)
            start(
                recipe, config, path, source, reporter, requested_seeds=requested_seeds, until=until
            )
        elif read_run(path, until=until).results is None:
            _free_memory()
            resume(path, reporter, until=until)
    except (UserError, KeyboardInterrupt) as error:
        if received() or isinstance(error, KeyboardInterrupt):
            raise Stopped(resume="the same command resumes the runs") from error
        reporter.line(f"  failed: {error}")
        return SeedRun(path, config.seed, None, str(error))
    return read_run(path, until=until)


def seed_directories(folder: Path) -> dict[int, Path]:
    """Return the run directories `seed-N` in a folder by seed, in ascending order."""
    found = {
        int(match[1]): path
        for path in folder.glob("seed-*")
        if (match := _SEED_DIRECTORY.fullmatch(path.name)) and RunDir(path).config_file.is_file()
    }
    return dict(sorted(found.items()))


def _free_memory() -> None:
    """Free what an earlier run of this process has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
