"""One configuration for several seeds: every run, and what their figures have in common."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import read_json, write_json
from paramgolf.study.runs import (
    Member,
    flat,
    read_run,
    require_configuration,
    require_one_process,
    run_or_resume,
    seeds_in,
)

SUMMARY = "seeds.json"


class Row(NamedTuple):
    """One figure of several runs; of each, more is worse."""

    by_seed: dict[int, float]
    labels: tuple[str, ...] = ()
    """Of a BPB: the different ones, in the order of the seeds."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """Standard deviation with n - 1; None of one run."""
        values = list(self.by_seed.values())
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def worst_seed(self) -> int:
        """The seed of the largest value."""
        return max(self.by_seed, key=lambda seed: self.by_seed[seed])

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = self.by_seed.values()
        return {
            "mean": self.mean,
            "std": self.std,
            "min": min(values),
            "max": max(values),
            "worst_seed": self.worst_seed,
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
            "labels": list(self.labels),
        }


@dataclass(frozen=True)
class Seeds:
    """All runs of a folder of seeds, finished or not."""

    members: list[Member]

    @property
    def finished(self) -> list[Member]:
        """The runs that statistics are made of."""
        return [member for member in self.members if member.results is not None]

    @property
    def left_out(self) -> list[Member]:
        """The others."""
        return [member for member in self.members if member.results is None]

    def stages(self) -> dict[str, Row]:
        """BPB by stage, with its labels."""
        results = self._results()
        return {
            stage: Row(
                {seed: found["stages"][stage]["bpb"] for seed, found in results.items()},
                tuple(dict.fromkeys(r["stages"][stage]["label"] for r in results.values())),
            )
            for stage in next(iter(results.values()), {"stages": {}})["stages"]
        }

    def sizes(self) -> dict[str, Row]:
        """Bytes and seconds."""
        results = self._results()
        if not results:
            return {}
        figures: dict[str, Callable[[dict[str, Any]], float]] = {
            "bytes": lambda found: found["bytes"]["total"],
            "seconds": lambda found: sum(found["seconds"].values()),
            "seconds, training": lambda found: found["budgets"]["training"],
            "seconds, evaluation": lambda found: found["budgets"]["evaluation"],
        }
        return {
            name: Row({seed: figure(found) for seed, found in results.items()})
            for name, figure in figures.items()
        }

    def over(self) -> str:
        """Of how many runs the statistics are."""
        count = f"{len(self.finished)} of {len(self.members)} seeds"
        if not self.left_out:
            return count
        return f"{count}; left out: " + ", ".join(f"{m.seed} ({m.state})" for m in self.left_out)

    def _results(self) -> dict[int, dict[str, Any]]:
        return {m.seed: m.results for m in self.members if m.results is not None}


def run_seeds(
    recipe: str,
    config: RunConfig,
    seeds: Sequence[int],
    out: Path,
    reporter: Reporter,
    others: Sequence[Path] = (),
) -> Seeds:
    """Make the runs `out`/seed-N that are not finished yet, and `out`/seeds.json.

    Args:
        recipe: its name.
        config: what all runs have in common; its seed does not matter.
        seeds: of the runs to be made; what else the folder holds is part of the result.
        out: the folder.
        reporter: the console.
        others: folders of seeds whose weights new runs take over where they would train the same.

    Raises:
        ConfigError: if there is no seed, or one twice, or torchrun started this process.
        UserError: if the folder holds runs of another configuration.
    """
    require_one_process("seeds")
    twice = next((seed for seed in seeds if list(seeds).count(seed) > 1), None)
    if not seeds or twice is not None:
        what = "name at least one seed" if not seeds else f"seed {twice} is named twice"
        raise ConfigError(f"{what}: --seeds 1337 42 999")
    wanted = {seed: dataclasses.replace(config, seed=seed) for seed in seeds}
    for path in [*(out / f"seed-{seed}" for seed in wanted), *seeds_in(out)]:
        seed = int(path.name.removeprefix("seed-"))
        require_configuration(path, dataclasses.replace(config, seed=seed))
    failures = dict.fromkeys(wanted, "")
    found = _seeds_of(out, failures)
    _write(recipe, config, found, out)
    for seed, own in wanted.items():
        name = f"seed-{seed}"
        same_seed = [folder / name for folder in others]
        failures[seed] = run_or_resume(recipe, own, out / name, reporter, same_seed).failure
        found = _seeds_of(out, failures)
        _write(recipe, config, found, out)
    return found


def read_seeds(path: Path) -> Seeds:
    """The runs of a folder of seeds, or one run.

    Raises:
        UserError: if `path` is neither.
    """
    if (path / SUMMARY).is_file():
        return _seeds_of(path, {})
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} is neither a run (no config.json) nor a folder of seeds (no {SUMMARY}): "
            "`paramgolf seeds RECIPE --out DIR` makes one"
        )
    return Seeds([read_run(path)])


def _seeds_of(folder: Path, failures: dict[int, str]) -> Seeds:
    """All runs of a folder, with what ended the failed ones: now, or as it was written down."""
    known: dict[int, str] = {}
    if (folder / SUMMARY).exists():
        known = {entry["seed"]: entry["failure"] for entry in read_json(folder / SUMMARY)["runs"]}
    known |= failures
    there = {int(path.name.removeprefix("seed-")): path for path in seeds_in(folder)}
    members = [
        read_run(there[seed], known.get(seed, ""))
        if seed in there
        else Member(folder / f"seed-{seed}", seed, None, known[seed])
        for seed in sorted(known.keys() | there.keys())
    ]
    return Seeds(members)


def _write(recipe: str, config: RunConfig, seeds: Seeds, folder: Path) -> None:
    rows = {f"bpb {stage}": row for stage, row in seeds.stages().items()} | seeds.sizes()
    write_json(
        folder / SUMMARY,
        {
            "recipe": recipe,
            "config": {key: value for key, value in flat(config).items() if key != "seed"},
            "seeds": [member.seed for member in seeds.members],
            "runs": [
                {
                    "seed": member.seed,
                    "path": member.path.name,
                    "state": member.state,
                    "failure": member.failure,
                }
                for member in seeds.members
            ],
            "over": [member.seed for member in seeds.finished],
            "left_out": [member.seed for member in seeds.left_out],
            "statistics": {name: row.to_json() for name, row in rows.items()},
        },
    )
