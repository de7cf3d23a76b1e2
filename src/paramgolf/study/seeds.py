"""One configuration run with several seeds, and statistics over the runs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import write_json
from paramgolf.runtime.schema import read_record
from paramgolf.scoring.bits_per_byte import label_of
from paramgolf.study.runs import (
    SeedRun,
    different_forms,
    flat_config,
    read_run,
    require_configuration,
    require_one_process,
    run_or_resume,
    seed_directories,
)

SUMMARY = "seeds.json"


class Statistic(NamedTuple):
    """One quantity over several seeds; for every quantity here, more is worse."""

    by_seed: dict[int, float]
    labels: tuple[str, ...] = ()
    """For a BPB: the distinct labels of the scores, in the order of the seeds."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """Standard deviation with n - 1; None for a single run."""
        values = list(self.by_seed.values())
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def worst_seed(self) -> int:
        """The seed with the largest value."""
        return max(self.by_seed, key=lambda seed: self.by_seed[seed])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
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
class SeedRuns:
    """All runs of a folder of seeds, finished or not, in ascending order of their seeds."""

    runs: list[SeedRun]
    """All runs that exist or were asked for."""
    requested: dict[int, Path]
    """The seeds that were asked for, and where their runs belong. Empty: not recorded."""

    @property
    def finished(self) -> list[SeedRun]:
        """The runs that the statistics cover."""
        return [run for run in self.runs if run.results is not None]

    @property
    def left_out(self) -> list[SeedRun]:
        """The runs that the statistics do not cover."""
        return [run for run in self.runs if run.results is None]

    def stages(self) -> dict[str, Statistic]:
        """Return the BPB of every stage, with its labels."""
        results = self._results()
        return {
            stage: Statistic(
                {seed: found["stages"][stage]["bpb"] for seed, found in results.items()},
                tuple(dict.fromkeys(label_of(r, stage) for r in results.values())),
            )
            for stage in next(iter(results.values()), {"stages": {}})["stages"]
        }

    def sizes(self) -> dict[str, Statistic]:
        """Return bytes and seconds, as far as all finished runs have them."""
        results = self._results()
        quantities: dict[str, tuple[str, Callable[[Any], float]]] = {
            "bytes": ("bytes", lambda size: size["total"]),
            "seconds": ("seconds", lambda by_phase: sum(by_phase.values())),
            "seconds, training": ("budgets", lambda budgets: budgets["training"]),
            "seconds, evaluation": ("budgets", lambda budgets: budgets["evaluation"]),
        }
        return {
            name: Statistic({seed: quantity(found[key]) for seed, found in results.items()})
            for name, (key, quantity) in quantities.items()
            if results and all(key in found for found in results.values())
        }

    def coverage(self) -> str:
        """Return how many runs the statistics cover, and which they leave out."""
        count = f"{len(self.finished)} of {len(self.runs)} seeds"
        if not self.left_out:
            return count
        return f"{count}; left out: " + ", ".join(f"{r.seed} ({r.state})" for r in self.left_out)

    def _results(self) -> dict[int, dict[str, Any]]:
        return {run.seed: run.results for run in self.runs if run.results is not None}


def run_seeds(
    recipe: str,
    config: RunConfig,
    seeds: Sequence[int],
    out: Path,
    reporter: Reporter,
    sources: Sequence[Path] = (),
    until: str = "score",
) -> SeedRuns:
    """Make those runs `out`/seed-N that are not finished yet, and write `out`/seeds.json.

    That file names the seeds before the first of them runs, with the time; later ones are added and
    none is ever removed.

    Args:
        recipe: name of the recipe.
        config: what all runs have in common; its seed is ignored.
        seeds: the runs to make; other runs found in the folder are part of the result.
        out: the folder of seeds.
        reporter: the console.
        sources: runs from which new ones take over text and weights that would be the same.
        until: the last stage to run.

    Raises:
        ConfigError: if no seed is named, or one twice, or torchrun started this process.
        UserError: if the folder contains runs of another configuration, or scored on another text.
    """
    require_one_process("seeds")
    repeated = next((seed for seed in seeds if list(seeds).count(seed) > 1), None)
    if not seeds or repeated is not None:
        problem = "name at least one seed" if not seeds else f"seed {repeated} is named twice"
        raise ConfigError(f"{problem}: --seeds 1337 42 999")
    configs = {seed: dataclasses.replace(config, seed=seed) for seed in seeds}
    paths = {seed: out / f"seed-{seed}" for seed in seeds}
    require_configurations(out, config)
    failures = dict.fromkeys(seeds, "")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    requests = dict.fromkeys(seeds, now) | _read_requests(out)
    found = _read_folder(out, failures, until)
    _write_summary(recipe, config, found, out, requests, until)
    for seed, path in paths.items():
        run = run_or_resume(recipe, configs[seed], path, reporter, sources, sorted(requests), until)
        failures[seed] = run.failure
        found = _read_folder(out, failures, until)
        _write_summary(recipe, config, found, out, requests, until)
    return found


def require_configurations(folder: Path, config: RunConfig) -> None:
    """Check that every run of a folder of seeds has this configuration but for its seed.

    Raises:
        UserError: naming the first run and key that differ.
    """
    for seed, path in seed_directories(folder).items():
        require_configuration(path, dataclasses.replace(config, seed=seed))


def read_seeds(path: Path) -> SeedRuns:
    """Read the runs of a folder of seeds, or a single run.

    Seeds that were asked for and have no run are among its runs, as missing.

    Raises:
        UserError: if `path` is neither, or if its runs were scored on different texts.
    """
    if (path / SUMMARY).is_file():
        return _read_folder(path, {})
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} is neither a run (no config.json) nor a folder of seeds (no {SUMMARY}); "
            "make one with `paramgolf seeds RECIPE --seeds N... --out DIR`"
        )
    run = read_run(path)
    folder = (path.resolve() if path.name in ("", "..") else path).parent
    seeds = {*run.requested_seeds}
    if run.seed in seed_directories(folder):
        seeds |= _read_requests(folder).keys()
    return SeedRuns([run], _places(folder, seeds))


def _read_summary(folder: Path) -> dict[str, Any]:
    schema = {"runs": [{"seed": int, "failure": str}], "requested?": [{"seed": int, "time": str}]}
    return read_record(folder / SUMMARY, schema, "restore it, or remove it")


def read_folder(folder: Path, seeds: Sequence[int], until: str) -> SeedRuns:
    """Read the runs of a folder up to a stage; those of `seeds` that do not exist are missing.

    Raises:
        UserError: if its runs were scored on different texts.
    """
    known: dict[int, str] = {}
    if (folder / SUMMARY).exists():
        known = {entry["seed"]: entry["failure"] for entry in _read_summary(folder)["runs"]}
    return _read_folder(folder, dict.fromkeys(seeds, "") | known, until)


def _read_folder(folder: Path, failures: dict[int, str], until: str = "score") -> SeedRuns:
    """Read all runs of a folder; a failure given here overrides the one in its summary."""
    known: dict[int, str] = {}
    if (folder / SUMMARY).exists():
        known = {entry["seed"]: entry["failure"] for entry in _read_summary(folder)["runs"]}
    known |= failures
    paths = seed_directories(folder)
    present = {seed: read_run(path, known.get(seed, ""), until) for seed, path in paths.items()}
    requested = {*_read_requests(folder), *failures}
    for run in present.values():
        requested.update(run.requested_seeds)
    missing = {
        seed: SeedRun(folder / f"seed-{seed}", seed, None, known.get(seed, ""))
        for seed in (known.keys() | requested) - present.keys()
    }
    runs = [run for _, run in sorted((present | missing).items())]
    _require_one_text(runs)
    return SeedRuns(runs, _places(folder, requested))


def _read_requests(folder: Path) -> dict[int, str]:
    """Return the seeds that were asked for, with the time, in the order of their seeds."""
    path = folder / SUMMARY
    requests = _read_summary(folder).get("requested", []) if path.exists() else []
    return {entry["seed"]: entry["time"] for entry in requests}


def _places(folder: Path, seeds: Iterable[int]) -> dict[int, Path]:
    return {seed: folder / f"seed-{seed}" for seed in sorted(seeds)}


def _require_one_text(runs: Sequence[SeedRun]) -> None:
    """Refuse runs whose scores are not of the same text in the same form.

    Their mean would mean nothing.
    """
    texts: dict[tuple[str, str], Path] = {}
    for run in runs:
        if run.results is not None and run.text_sha256:
            texts.setdefault((run.text_sha256, run.restores), run.path)
    if len(texts) > 1:
        (one, path), (other, another) = list(texts.items())[:2]
        if one[0] == other[0]:
            raise UserError(different_forms(one[1], path, other[1], another))
        raise UserError(
            f"these scores are not comparable: text_sha256 is {one[0][:16]} in {path} and "
            f"{other[0][:16]} in {another}; keep the runs of each text in a folder of their own"
        )


def _write_summary(
    recipe: str,
    config: RunConfig,
    found: SeedRuns,
    folder: Path,
    requests: dict[int, str],
    until: str,
) -> None:
    rows = {f"bpb {stage}": bpb for stage, bpb in found.stages().items()} | found.sizes()
    write_json(
        folder / SUMMARY,
        {
            "recipe": recipe,
            "until": until,
            "config": {key: value for key, value in flat_config(config).items() if key != "seed"},
            "requested": [{"seed": seed, "time": when} for seed, when in sorted(requests.items())],
            "seeds": [run.seed for run in found.runs],
            "runs": [
                {
                    "seed": run.seed,
                    "path": run.path.name,
                    "state": run.state,
                    "failure": run.failure,
                }
                for run in found.runs
            ],
            "over": [run.seed for run in found.finished],
            "left_out": [run.seed for run in found.left_out],
            "statistics": {name: row.to_json() for name, row in rows.items()},
        },
    )
