"""Ablation: run variants of a configuration, summarised as a table and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import write_json
from paramgolf.study.cells import Values, Variant
from paramgolf.study.plots import SERIES, drawing, save_svg
from paramgolf.study.runs import require_one_process
from paramgolf.study.seeds import (
    SeedRuns,
    Statistic,
    read_folder,
    require_configurations,
    run_seeds,
)

SUMMARY, PLOT = "ablation.json", "ablation.svg"
SEED_STD = 0.02
"""Standard deviation of BPB over five seeds of `tiny`, as far as it is known where a cell has one
seed (docs/experiments/tiny-seeds.md): smaller differences between such cells may be chance."""
_MIN_LOG_RATIO = 10.0
"""Ratio of the largest to the smallest value from which the x axis is logarithmic."""


class Cell(NamedTuple):
    """One variant with its runs, finished or not."""

    values: Values
    folder: Path
    """A folder of seeds."""
    seeds: SeedRuns

    @property
    def text_sha256(self) -> str:
        """SHA-256 of the text that the cell's runs were scored on; empty if it is not known."""
        return next((run.text_sha256 for run in self.seeds.finished if run.text_sha256), "")

    @property
    def text(self) -> tuple[str, str]:
        """The scored text, and in which form it comes back; empty if not known."""
        restores = next((run.restores for run in self.seeds.finished), "")
        return (self.text_sha256, restores) if self.text_sha256 else ("", "")

    @property
    def steps(self) -> float | None:
        """Steps of training, on average over the seeds; None without a finished run."""
        return _mean([run.results["steps"] for run in self.seeds.finished if run.results])

    @property
    def tokens_per_second(self) -> float | None:
        """Of training, on average over the seeds; None if no run measured it in one go."""
        results = [run.results for run in self.seeds.finished if run.results]
        return _mean([r for found in results if (r := found["tokens_per_second"].get("train"))])

    @property
    def last_stage(self) -> tuple[str, Statistic] | None:
        """The last stage and its BPB; None without a finished run."""
        stages = self.seeds.stages()
        return list(stages.items())[-1] if stages else None


@dataclass(frozen=True)
class Grid:
    """All cells, in the order of the values on the command line."""

    cells: list[Cell]
    until: str = "score"
    """The last stage of the runs."""

    @property
    def num_texts(self) -> int:
        """Number of different scored texts and forms; over 1, BPB are not comparable."""
        return len({cell.text for cell in self.cells} - {("", "")})

    @property
    def is_plotted(self) -> bool:
        """Whether the cells are all combinations of some values, scored on the same text.

        A line through scores of different texts would say nothing.
        """
        keys = self.cells[0].values
        values = [{str(cell.values[key]) for cell in self.cells} for key in keys]
        is_grid = math.prod(map(len, values)) == len(self.cells)
        return bool(keys) and is_grid and self.num_texts <= 1

    @property
    def failed(self) -> list[Cell]:
        """Cells with an unfinished run."""
        return [cell for cell in self.cells if cell.seeds.left_out]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def run_grid(
    recipe: str,
    grid: Sequence[Variant],
    seeds: Sequence[int],
    out: Path,
    reporter: Reporter,
    until: str = "score",
    from_run: Path | None = None,
) -> Grid:
    """Make the unfinished runs of all cells, and write ablation.json after each, and ablation.svg.

    Cells that have the text, or everything up to the weights, in common prepare or train once per
    seed.

    Args:
        recipe: name of the recipe.
        grid: from `parse_grid` or `parse_cells`.
        seeds: of every cell.
        out: the directory in which every cell is a folder of seeds.
        reporter: the console.
        until: the last stage to run; its score is compared.
        from_run: another run that cells take over the same from.

    Raises:
        ConfigError: see `run_seeds`.
        UserError: if the directory contains runs of another configuration.
    """
    require_one_process("ablate")
    folders = [out / cell.folder for cell in grid]
    for cell, folder in zip(grid, folders, strict=True):
        require_configurations(folder, cell.config)
    sources = [folder / f"seed-{seed}" for folder in folders for seed in seeds]
    sources += [from_run] if from_run is not None else []
    cells = [
        Cell(cell.values, folder, read_folder(folder, seeds, until))
        for cell, folder in zip(grid, folders, strict=True)
    ]
    found = Grid(cells, until)
    for number, cell in enumerate(grid):
        reporter.line(f"cell {number + 1} of {len(grid)}: {_title(cell.values) or 'unchanged'}")
        runs = run_seeds(recipe, cell.config, seeds, folders[number], reporter, sources, until)
        cells[number] = cells[number]._replace(seeds=runs)
        write_json(out / SUMMARY, _to_json(recipe, found))
    if not found.is_plotted:
        (out / PLOT).unlink(missing_ok=True)
    elif any(cell.last_stage for cell in cells):
        _plot(found, out / PLOT)
    return found


def _title(values: Values) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _to_json(recipe: str, grid: Grid) -> dict[str, Any]:
    cells = []
    for cell in grid.cells:
        sizes = cell.seeds.sizes()
        stage, bpb = cell.last_stage or ("", None)
        cells.append(
            {
                "values": cell.values,
                "folder": cell.folder.name,
                "text_sha256": cell.text_sha256,
                "stage": stage,
                "bpb": bpb.to_json() if bpb else None,
                "bytes": sizes["bytes"].to_json() if "bytes" in sizes else None,
                "seconds": sizes["seconds"].to_json() if sizes else None,
                "steps": cell.steps,
                "tokens_per_second": cell.tokens_per_second,
                "left_out": [
                    {"seed": run.seed, "state": run.state, "failure": run.failure}
                    for run in cell.seeds.left_out
                ],
            }
        )
    return {"recipe": recipe, "until": grid.until, "texts": grid.num_texts, "cells": cells}


def _plot(grid: Grid, path: Path) -> None:
    """Plot BPB over the first key's values, one line per combination of the other keys."""
    first, *others = grid.cells[0].values
    xs = list(dict.fromkeys(cell.values[first] for cell in grid.cells))
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs)
    scores = [score for cell in grid.cells if (score := cell.last_stage)]
    labels = ", ".join(dict.fromkeys(label for _, bpb in scores for label in bpb.labels))
    stages = ", ".join(dict.fromkeys(stage for stage, _ in scores))
    lines: dict[str, list[tuple[float, Statistic]]] = {}
    for cell in grid.cells:
        line = lines.setdefault(_title({key: cell.values[key] for key in others}), [])
        if cell.last_stage:
            x = cell.values[first] if numeric else xs.index(cell.values[first])
            line.append((x, cell.last_stage[1]))
    means = [bpb.mean for _, bpb in scores]
    with drawing(first, f"BPB, {stages} ({labels})") as (figure, axes):
        for title, points in lines.items():
            points.sort(key=lambda point: point[0])
            places, stds = [x for x, _ in points], [bpb.std or 0.0 for _, bpb in points]
            values = np.array([bpb.mean for _, bpb in points])
            drawn = axes.plot(
                places, values, "o-", markersize=4,
                label=title if points else f"{title} (failed)",
            )  # fmt: skip
            color = drawn[0].get_color()
            if any(stds):
                axes.errorbar(places, values, stds, fmt="none", ecolor=color, capsize=3)
                axes.fill_between(
                    places, values - stds, values + stds, color=color, alpha=0.15, lw=0
                )
        if any(bpb.std is None for _, bpb in scores):
            center = (min(means) + max(means)) / 2
            axes.axhspan(center - SEED_STD / 2, center + SEED_STD / 2, color=SERIES[5], alpha=0.15)
            axes.set_ylim(
                min(*means, center - SEED_STD) - SEED_STD / 4,
                max(*means, center + SEED_STD) + SEED_STD / 4,
            )
            note = f"one seed: differences of about {SEED_STD:g} BPB (grey) are noise"
        else:
            note = "bands: plus and minus one standard deviation over the seeds"
        axes.set_title(note, loc="left", fontsize=10)
        if others:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        if not numeric:
            axes.set_xticks(range(len(xs)), [str(x) for x in xs])
        elif min(xs) > 0 and max(xs) / min(xs) >= _MIN_LOG_RATIO:
            axes.set_xscale("log")
        if numeric:
            axes.set_xticks(xs, [f"{x:g}" for x in xs], minor=False)
            axes.minorticks_off()
        save_svg(figure, path)
