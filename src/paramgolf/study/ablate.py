"""A grid of configurations: the runs of every cell, a table, a plot."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from paramgolf.config import RunConfig, from_json, to_json
from paramgolf.errors import ConfigError
from paramgolf.recipes import with_absolute_paths
from paramgolf.report.svg import drawing, save_svg
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import read_tensors, write_json
from paramgolf.runtime.rundir import RunDir
from paramgolf.study.runs import flat, require_configuration, require_one_process, seeds_in
from paramgolf.study.seeds import Row, Seeds, run_seeds

SUMMARY, PLOT = "ablation.json", "ablation.svg"
_LOGARITHMIC_FROM = 10.0
"""Largest over smallest value of the first key, from which its axis is logarithmic."""

Values = dict[str, Any]
"""Value by key."""


class Cell(NamedTuple):
    """One point of the grid, as far as its runs have come."""

    values: Values
    folder: Path
    """A folder of seeds."""
    seeds: Seeds

    @property
    def last_stage(self) -> tuple[str, Row] | None:
        """The last score and its BPB; None without a finished run."""
        stages = self.seeds.stages()
        return list(stages.items())[-1] if stages else None


@dataclass(frozen=True)
class Grid:
    """All cells, in the order of the values."""

    cells: list[Cell]

    @property
    def num_texts(self) -> int:
        """How many different texts the finished runs were scored on; over 1, BPB do not compare."""
        paths = [RunDir(m.path).documents for cell in self.cells for m in cell.seeds.finished]
        return len({read_tensors(path)[1]["text_sha256"] for path in paths if path.exists()})

    @property
    def failed(self) -> list[Cell]:
        """Cells that lack a run."""
        return [cell for cell in self.cells if cell.seeds.left_out]


def parse_grid(config: RunConfig, vary: Sequence[str]) -> list[tuple[Values, RunConfig]]:
    """The cells that `KEY=A,B` span, and their configurations; the last key varies first.

    Args:
        config: what else they have in common.
        vary: a key each, as on the command line, and its values.

    Raises:
        ConfigError: on a key or value that is not possible, or one that is named twice.
    """
    possible, keys = flat(config), dict[str, list[str]]()
    for text in vary:
        name, equals, values = text.partition("=")
        key = name.strip().removeprefix("--").replace("-", "_")
        parts = [part.strip() for part in values.split(",")]
        if not equals or "" in parts or not key:
            raise ConfigError(f"--vary {text!r} is not KEY=A,B: --vary train.matrix_lr=0.02,0.04")
        if key not in possible:
            close = difflib.get_close_matches(key, possible, n=1)
            hint = f"did you mean {close[0]}?" if close else "`paramgolf run RECIPE --help`"
            raise ConfigError(f"--vary: there is no key {key!r}; {hint}")
        if key == "seed":
            raise ConfigError("--vary seed is not possible: name the seeds of every cell, --seeds")
        if key in keys:
            raise ConfigError(f"--vary {key} is there twice: give all its values at once")
        keys[key] = parts
    if not keys:
        raise ConfigError("name what to vary: --vary train.matrix_lr=0.02,0.04")
    cells: list[tuple[Values, RunConfig]] = []
    for combination in itertools.product(*keys.values()):
        changed = to_json(config)
        for key, text in zip(keys, combination, strict=True):
            section, _, name = key.rpartition(".")
            (changed[section] if section else changed)[name] = _typed(text, possible[key])
        cell = with_absolute_paths(from_json(RunConfig, changed))
        values = {key: flat(cell)[key] for key in keys}
        if any(values == other for other, _ in cells):
            raise ConfigError(f"--vary names {_name(values)} twice")
        cells.append((values, cell))
    return cells


def run_grid(
    recipe: str,
    grid: Sequence[tuple[Values, RunConfig]],
    seeds: Sequence[int],
    out: Path,
    reporter: Reporter,
) -> Grid:
    """Make the runs of all cells that are not finished yet; writes ablation.json and ablation.svg.

    What cells have in common up to the weights is trained once a seed.

    Args:
        recipe: its name.
        grid: from `parse_grid`.
        seeds: of every cell.
        out: the folder; each cell is a folder of seeds in it.
        reporter: the console.

    Raises:
        ConfigError: see `run_seeds`.
        UserError: if the folder holds runs of another configuration.
    """
    require_one_process("ablate")
    folders = [out / _name(values) for values, _ in grid]
    for (_, config), folder in zip(grid, folders, strict=True):
        for path in seeds_in(folder):
            seed = int(path.name.removeprefix("seed-"))
            require_configuration(path, dataclasses.replace(config, seed=seed))
    cells: list[Cell] = []
    for number, ((values, config), folder) in enumerate(zip(grid, folders, strict=True), start=1):
        reporter.line(f"cell {number} of {len(grid)}: {_title(values)}")
        found = run_seeds(recipe, config, seeds, folder, reporter, folders)
        cells.append(Cell(values, folder, found))
    whole = Grid(cells)
    write_json(out / SUMMARY, _to_json(recipe, whole))
    if any(cell.last_stage for cell in cells):
        _plot(whole, out / PLOT)
    return whole


def _typed(text: str, like: Any) -> Any:
    """A value as its key has it now; the text itself where it is none, for `from_json` to refuse.

    Args:
        text: of the command line.
        like: the key's value.
    """
    if isinstance(like, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return type(like)(text) if isinstance(like, int | float) else text
    except ValueError:
        return text


def _name(values: Values) -> str:
    """The folder of a cell."""
    return ",".join(f"{key}={quote(str(value), safe='')}" for key, value in values.items())


def _title(values: Values) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _to_json(recipe: str, grid: Grid) -> dict[str, Any]:
    cells = []
    for cell in grid.cells:
        sizes = cell.seeds.sizes()
        stage, row = cell.last_stage or ("", None)
        cells.append(
            {
                "values": cell.values,
                "folder": cell.folder.name,
                "stage": stage,
                "bpb": row.to_json() if row else None,
                "bytes": sizes["bytes"].to_json() if sizes else None,
                "seconds": sizes["seconds"].to_json() if sizes else None,
                "left_out": [
                    {"seed": m.seed, "state": m.state, "failure": m.failure}
                    for m in cell.seeds.left_out
                ],
            }
        )
    return {"recipe": recipe, "texts": grid.num_texts, "cells": cells}


def _plot(grid: Grid, path: Path) -> None:
    """BPB over the first key's values, a line a combination of the others."""
    first, *others = grid.cells[0].values
    xs = list(dict.fromkeys(cell.values[first] for cell in grid.cells))
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs)
    scores = [found for cell in grid.cells if (found := cell.last_stage)]
    labels = ", ".join(dict.fromkeys(label for _, row in scores for label in row.labels))
    stages = ", ".join(dict.fromkeys(stage for stage, _ in scores))
    lines: dict[str, list[tuple[float, Row]]] = {}
    for cell in grid.cells:
        line = lines.setdefault(_title({key: cell.values[key] for key in others}), [])
        if cell.last_stage:
            x = cell.values[first] if numeric else xs.index(cell.values[first])
            line.append((x, cell.last_stage[1]))
    several = any(row.std is not None for _, row in scores)
    with drawing(first, f"BPB, {stages} ({labels})") as (figure, axes):
        for title, points in lines.items():
            points.sort(key=lambda point: point[0])
            axes.errorbar(
                [x for x, _ in points],
                [row.mean for _, row in points],
                yerr=[row.std or 0.0 for _, row in points] if several else None,
                marker="o", markersize=4, capsize=3,
                label=title if points else f"{title} (failed)",
            )  # fmt: skip
        if others:
            axes.legend()
        if not numeric:
            axes.set_xticks(range(len(xs)), [str(x) for x in xs])
        elif min(xs) > 0 and max(xs) / min(xs) >= _LOGARITHMIC_FROM:
            axes.set_xscale("log")
        if numeric:
            axes.set_xticks(xs, [f"{x:g}" for x in xs], minor=False)
            axes.minorticks_off()
        save_svg(figure, path)
