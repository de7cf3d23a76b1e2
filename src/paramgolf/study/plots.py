"""Plots as SVG files whose text stays text, black on white."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paramgolf.runtime.files import write_bytes

SERIES = ("#3b7dd8", "#d9663b", "#3f9b63", "#9a62c7", "#b8860b", "#5f7f93")
"""Colours of lines and bars, readable on white and on black."""
FONTS = ("DejaVu Sans", "Verdana", "Arial")
"""Of all figures; the first one is measured, and those after it are about as wide."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paramgolf",  # equal plots are equal files
    "font.family": "sans-serif",
    "font.sans-serif": FONTS,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d8d8d8",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextmanager
def drawing(
    xlabel: str, ylabel: str, width: float = 7.2, height: float = 3.4
) -> Iterator[tuple[Figure, Axes]]:
    """Open an empty plot, `width` by `height` inches, to draw on; needs no window system."""
    with panels(1, 1, width, height) as (figure, (axes,)):
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        yield figure, axes


@contextmanager
def panels(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure of several plots, row by row; the options are those of `Figure.subplots`."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, **options)
        for axes in grid.flat:
            axes.set_prop_cycle(color=SERIES)
        yield figure, list(grid.flat)


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as an SVG file; equal figures are equal files."""
    content = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_bytes(path, content.getvalue().encode())
