"""Plots as SVG whose text stays text: in a page they take its colours, alone they are on white."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paramgolf.runtime.files import write_bytes

SERIES = ("#3b7dd8", "#d9663b", "#3f9b63", "#9a62c7", "#b8860b", "#5f7f93")
"""Colours of curves and bars, readable on white and on black."""
_INK, _FAINT = "#010203", "#040506"  # stand for the page's colours of text and of lines
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paramgolf",  # equal plots are equal files
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "axes.grid": True,
    "grid.color": _FAINT,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
}


@contextmanager
def drawing(
    xlabel: str, ylabel: str, width: float = 7.2, height: float = 3.4
) -> Iterator[tuple[Figure, Axes]]:
    """An empty plot of so many inches, to be drawn on in the block; no window system is needed."""
    with panels(1, 1, width, height) as (figure, (axes,)):
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        yield figure, axes


@contextmanager
def panels(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """`drawing` with several plots, row by row; the options are those of `Figure.subplots`."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, **options)
        for axes in grid.flat:
            axes.set_prop_cycle(color=SERIES)
        yield figure, list(grid.flat)


def bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    colors: Sequence[str],
    texts: Sequence[str],
) -> None:
    """Horizontal bars from the top down, each with a text behind it; leaves room for the texts."""
    rows = range(len(values))
    axes.barh(rows, values, color=colors, height=0.62)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for row, value, text in zip(rows, values, texts, strict=True):
        axes.annotate(text, (value, row), (5, 0), textcoords="offset points", va="center")


def inline_svg(figure: Figure, title: str) -> str:
    """The plot as an <svg> element for a page that defines the colours `currentColor` and --faint.

    It takes the page's font too. Its ids are its own: a page may hold several plots.

    Args:
        figure: from `drawing`.
        title: what a screen reader says.
    """
    svg = _svg(figure)
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace(_FAINT, "var(--faint)")
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    own = f"p{hashlib.sha256((title + svg).encode()).hexdigest()[:8]}-"
    svg = re.sub(r'( id="|url\(#|href="#)', lambda found: found[0] + own, svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def save_svg(figure: Figure, path: Path) -> None:
    """Write the plot as a file of its own, black on white."""
    figure.set_facecolor("white")
    svg = _svg(figure).replace(_INK, "#000000").replace(_FAINT, "#d8d8d8")
    write_bytes(path, svg.encode())


def _svg(figure: Figure) -> str:
    content = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
