"""Ablation: run a grid of configurations, summarised as a table and a plot."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from paramgolf.config import RunConfig, from_json, to_json
from paramgolf.errors import ConfigError
from paramgolf.recipes import with_absolute_paths
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import write_json
from paramgolf.study.plots import SERIES, drawing, save_svg
from paramgolf.study.runs import flat_config, require_one_process
from paramgolf.study.seeds import SeedRuns, Statistic, require_configurations, run_seeds

SUMMARY, PLOT = "ablation.json", "ablation.svg"
SEED_STD = 0.02
"""Standard deviation of BPB over five seeds of `tiny`, as far as it is known where a cell has one
seed (docs/experiments/tiny-seeds.md): smaller differences between such cells may be chance."""
_MIN_LOG_RATIO = 10.0
"""Ratio of the largest to the smallest value from which the x axis is logarithmic."""

Values = dict[str, Any]
"""Value of every varied key."""


class Cell(NamedTuple):
    """One point of the grid with its runs, finished or not."""

    values: Values
    folder: Path
    """A folder of seeds."""
    seeds: SeedRuns

    @property
    def text_sha256(self) -> str:
        """SHA-256 of the text that the cell's runs were scored on; empty if it is not known."""
        return next((run.text_sha256 for run in self.seeds.finished if run.text_sha256), "")

    @property
    def last_stage(self) -> tuple[str, Statistic] | None:
        """The last stage and its BPB; None without a finished run."""
        stages = self.seeds.stages()
        return list(stages.items())[-1] if stages else None


@dataclass(frozen=True)
class Grid:
    """All cells, in the order of the values on the command line."""

    cells: list[Cell]

    @property
    def num_texts(self) -> int:
        """Number of different scored texts; if over 1, the cells' BPB are not comparable."""
        return len({cell.text_sha256 for cell in self.cells} - {""})

    @property
    def failed(self) -> list[Cell]:
        """Cells with an unfinished run."""
        return [cell for cell in self.cells if cell.seeds.left_out]


def parse_grid(config: RunConfig, vary: Sequence[str]) -> list[tuple[Values, RunConfig]]:
    """Return the cells spanned by `KEY=A,B` options with their configurations, last key fastest.

    Args:
        config: the values of all other keys.
        vary: one key with its values each, as on the command line.

    Raises:
        ConfigError: if a key or value is invalid, or named twice.
    """
    keys = _parse_keys(flat_config(config), vary)
    cells: list[tuple[Values, RunConfig]] = []
    for combination in itertools.product(*keys.values()):
        changed = to_json(config)
        for key, value in zip(keys, combination, strict=True):
            section, _, name = key.rpartition(".")
            (changed[section] if section else changed)[name] = value
        cell = with_absolute_paths(from_json(RunConfig, changed))
        values = {key: flat_config(cell)[key] for key in keys}
        if any(values == other for other, _ in cells):
            raise ConfigError(f"--vary names {_folder_name(values)} twice")
        cells.append((values, cell))
    return cells


def _parse_keys(current: Values, vary: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values to try of every key in `vary`, converted to the type of its current one."""
    keys: dict[str, list[Any]] = {}
    for option in vary:
        name, equals, values = option.partition("=")
        key = name.strip().removeprefix("--").replace("-", "_")
        texts = [text.strip() for text in values.split(",")]
        if not equals or "" in texts or not key:
            raise ConfigError(
                f"invalid --vary {option!r}: expected KEY=A,B, for example "
                "--vary train.matrix_lr=0.02,0.04"
            )
        if key not in current:
            close = difflib.get_close_matches(key, current, n=1)
            hint = f"did you mean {close[0]}?" if close else "see `paramgolf run RECIPE --help`"
            raise ConfigError(f"invalid --vary: there is no key {key!r}; {hint}")
        if key == "seed":
            raise ConfigError("invalid --vary seed: name the seeds of every cell with --seeds")
        if key in keys:
            raise ConfigError(f"--vary {key} is given twice: name all its values at once")
        keys[key] = [_typed(text, current[key]) for text in texts]
    if not keys:
        raise ConfigError("name what to vary: --vary train.matrix_lr=0.02,0.04")
    return keys


def _typed(text: str, like: Any) -> Any:
    """Convert `text` to the type of `like`; return it unchanged if it cannot be converted.

    `from_json` refuses such a text later with a message that names its key.
    """
    if isinstance(like, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return type(like)(text) if isinstance(like, int | float) else text
    except ValueError:
        return text


def run_grid(
    recipe: str,
    grid: Sequence[tuple[Values, RunConfig]],
    seeds: Sequence[int],
    out: Path,
    reporter: Reporter,
) -> Grid:
    """Make the unfinished runs of all cells, and write ablation.json and ablation.svg.

    Cells that have everything in common up to the weights share one training per seed.

    Args:
        recipe: name of the recipe.
        grid: from `parse_grid`.
        seeds: of every cell.
        out: the directory in which every cell is a folder of seeds.
        reporter: the console.

    Raises:
        ConfigError: see `run_seeds`.
        UserError: if the directory contains runs of another configuration.
    """
    require_one_process("ablate")
    folders = [out / _folder_name(values) for values, _ in grid]
    for (_, config), folder in zip(grid, folders, strict=True):
        require_configurations(folder, config)
    cells: list[Cell] = []
    for number, ((values, config), folder) in enumerate(zip(grid, folders, strict=True), start=1):
        reporter.line(f"cell {number} of {len(grid)}: {_title(values)}")
        cells.append(
            Cell(values, folder, run_seeds(recipe, config, seeds, folder, reporter, folders))
        )
    found = Grid(cells)
    write_json(out / SUMMARY, _to_json(recipe, found))
    if found.num_texts > 1:  # a line through scores of different texts would say nothing
        (out / PLOT).unlink(missing_ok=True)
    elif any(cell.last_stage for cell in cells):
        _plot(found, out / PLOT)
    return found


def _folder_name(values: Values) -> str:
    return ",".join(f"{key}={quote(str(value), safe='')}" for key, value in values.items())


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
                "bytes": sizes["bytes"].to_json() if sizes else None,
                "seconds": sizes["seconds"].to_json() if sizes else None,
                "left_out": [
                    {"seed": run.seed, "state": run.state, "failure": run.failure}
                    for run in cell.seeds.left_out
                ],
            }
        )
    return {"recipe": recipe, "texts": grid.num_texts, "cells": cells}


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
