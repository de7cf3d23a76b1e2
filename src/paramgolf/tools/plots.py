"""Plots as SVG whose text stays text: in a page they take its colours, alone they are on white."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paramgolf.rundir import write_bytes

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
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_prop_cycle(color=SERIES)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        yield figure, axes


def inline_svg(figure: Figure, title: str) -> str:
    """The plot as an <svg> element for a page that defines the colours `currentColor` and --faint.

    Args:
        figure: from `drawing`.
        title: what a screen reader says.
    """
    svg = _svg(figure)
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace(_FAINT, "var(--faint)")
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
