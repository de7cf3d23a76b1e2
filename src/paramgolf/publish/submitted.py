"""The runs of a submission: which were asked for, whether they belong together, their audits."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paramgolf.config import RunConfig
from paramgolf.errors import UserError
from paramgolf.publish.bundle import without_paths
from paramgolf.runtime.records import read_audit
from paramgolf.runtime.rundir import RunDir
from paramgolf.study.runs import SeedRun, first_difference
from paramgolf.study.scores import RunScore, read_score, require_same
from paramgolf.study.seeds import SeedRuns, read_seeds
from paramgolf.verify.summary import Record, median_seed


@dataclass(frozen=True)
class Submission:
    """The runs of a submission folder, with the scores of the finished ones."""

    recipe: str
    config: RunConfig
    seeds: SeedRuns
    stage: str
    """The last stage, whose score is submitted."""
    scores: list[RunScore]

    @property
    def chosen(self) -> SeedRun:
        """The run whose model is submitted."""
        seed = median_seed({score.seed: score.bpb for score in self.scores})
        return next(run for run in self.seeds.finished if run.seed == seed)

    @cached_property
    def audits(self) -> list[dict[str, Any]]:
        """Contents of every audit.json, without paths of this machine."""
        return [without_paths(read_audit(RunDir(run.path))) for run in self.seeds.finished]

    @property
    def records(self) -> dict[int, Record]:
        """Results and audit of every finished run."""
        runs = zip(self.seeds.finished, self.audits, strict=True)
        return {run.seed: Record(run.results or {}, audit) for run, audit in runs}

    @property
    def complete(self) -> bool:
        """Whether every seed that was asked for has a score."""
        return not self.seeds.left_out


def read_runs(paths: Sequence[Path], incomplete: bool) -> Submission:
    """Read all runs, and check that they belong together and that none is left out.

    Args:
        paths: run directories, or folders of seeds.
        incomplete: accept seeds that were asked for and have no score.

    Raises:
        UserError: if no run is finished, if the runs differ in more than their seed, if their
            scores are not comparable, or if a requested seed has no score.
    """
    studies = [read_seeds(path) for path in paths]
    runs = [run for study in studies for run in study.runs]
    numbers = [run.seed for run in runs]
    repeated = next((seed for seed in numbers if numbers.count(seed) > 1), None)
    if repeated is not None:
        raise UserError(f"two of these runs have the seed {repeated}: name each run once")
    requested = {seed: place for study in studies for seed, place in study.requested.items()}
    runs += [
        SeedRun(place, seed, None, named=False)
        for seed, place in requested.items()
        if seed not in numbers
    ]
    runs = [
        run._replace(results=without_paths(run.results), failure=without_paths(run.failure))
        for run in sorted(runs, key=lambda run: run.seed)
    ]
    seeds = SeedRuns(runs, dict(sorted(requested.items())))
    if not seeds.finished:
        raise UserError(f"no run is finished: {seeds.coverage()}")
    if not incomplete:
        _require_complete(seeds)
    recipe, config = _require_same_configuration(seeds.finished)
    _require_different_models(seeds.finished)
    stage = list((seeds.finished[0].results or {})["stages"])[-1]
    scores = [read_score(run, stage) for run in seeds.finished]
    require_same(scores, ("text_sha256", "restores", "bytes", "tokens", "label"))
    return Submission(recipe, config, seeds, stage, scores)


def _require_complete(seeds: SeedRuns) -> None:
    """Refuse runs from which a requested seed is left out.

    Raises:
        UserError: naming the seed, and the command that makes its run.
    """
    if not seeds.left_out:
        return
    run = seeds.left_out[0]
    if run.state == "missing":
        config = shlex.quote(str(seeds.finished[0].path / "config.json"))
        out = shlex.quote(str(run.path))
        command = f"paramgolf run --config {config} --seed {run.seed} --out {out}"
    elif not run.named:
        command = f"paramgolf submission {shlex.quote(str(run.path.parent))} --out DIR"
    else:
        command = f"paramgolf run --resume {shlex.quote(str(run.path))}"
    raise UserError(
        f"seed {run.seed} has no score here ({run.reason}): `{command}`; or submit without it, and "
        "say so, by --incomplete"
    )


def _require_different_models(runs: Sequence[SeedRun]) -> None:
    """Refuse one model that is submitted under several seeds.

    Raises:
        UserError: naming two runs with the same artifact.
    """
    seen: dict[str, Path] = {}
    for run in runs:
        other = seen.setdefault((run.results or {})["artifact_sha256"], run.path)
        if other != run.path:
            raise UserError(
                f"{run.path} and {other} have the same model.bin: it is one run, not two seeds"
            )


def _require_same_configuration(runs: Sequence[SeedRun]) -> tuple[str, RunConfig]:
    """Return the recipe and configuration of all runs, with the seed of the first one.

    Raises:
        UserError: naming the first key, apart from the seed, that differs.
    """
    first, *others = runs
    _, recipe, config = RunDir.open(first.path)
    for run in others:
        difference = first_difference(config, RunDir.open(run.path)[2], ignore=("seed",))
        if difference is not None:
            key, ours, theirs = difference
            raise UserError(
                f"these runs differ in more than their seed: {key} is {ours!r} in {first.path} "
                f"and {theirs!r} in {run.path}"
            )
    return recipe, config
