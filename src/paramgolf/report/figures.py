"""The plots of a report, each drawn twice: for a wide page and for a phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from paramgolf.model.roles import MATRIX_NAMES, role
from paramgolf.report.svg import SERIES, bars, drawing, inline_svg, panels

_BLUE, _ORANGE, _GREEN, _, _, _GREY = SERIES
_RED = "#c8433a"
BUDGET_COLORS: dict[str, str] = {"training": _BLUE, "evaluation": _ORANGE, "none": _GREY}
_WIDE, _NARROW = 10.0, 4.7  # inches of 72 units each; a unit is about a pixel of the page


class Plot(NamedTuple):
    """One plot as two <svg> elements."""

    wide: str
    narrow: str


class Step(NamedTuple):
    """A stage of scoring in the waterfall."""

    title: str
    bpb: float
    label: str


class Onset(NamedTuple):
    """When depth recurrence came on, in seconds of training, and from which visits to which."""

    seconds: float
    visits: int


class Bar(NamedTuple):
    """One bar and what is said of it."""

    name: str
    value: float
    color: str
    text: str


def _both(title: str, draw: Callable[[float], Figure]) -> Plot:
    return Plot(inline_svg(draw(_WIDE), title), inline_svg(draw(_NARROW), title))


def _ticks(most: int) -> MaxNLocator:
    return MaxNLocator(most, steps=[1, 2, 5, 10])


def waterfall(steps: Sequence[Step]) -> Plot:
    """Bits per byte from stage to stage, better to the left; the result last."""

    def draw(width: float) -> Figure:
        wide = width > 6
        height = (0.52 if wide else 0.66) * len(steps) + 0.75
        with drawing("bits per byte (the axis does not begin at 0)", "", width, height) as (
            figure,
            axes,
        ):
            values = [step.bpb for step in steps]
            room = (max(values) - min(values)) or 1e-3
            for row, step in enumerate(steps):
                _waterfall_row(axes, row, steps[row - 1] if row else None, step)
            names = [f"{step.title}\n{step.bpb:.4f} {step.label}" for step in steps]
            if wide:
                # From the left: how wide a text is, the page's font decides.
                axes.set_yticks(range(len(steps)), names, linespacing=1.35, ha="left")
                axes.tick_params(axis="y", pad=128)
            else:
                axes.set_yticks([])
                for row, name in enumerate(names):
                    axes.annotate(
                        name.replace("\n", "  "), (0, row - 0.42), va="center",
                        xycoords=("axes fraction", "data"),
                    )  # fmt: skip
            # A change is written to the right of its bar.
            axes.set_xlim(min(values) - 0.06 * room, max(values) + (0.14 if wide else 0.26) * room)
            axes.set_ylim(len(steps) - 0.5, -0.5 if wide else -0.75)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_locator(_ticks(8 if wide else 4))
        return figure

    return _both("Bits per byte after every stage", draw)


def _waterfall_row(axes: Axes, row: int, before: Step | None, step: Step) -> None:
    if before is None:
        axes.plot([step.bpb], [row], "o", color=_GREY, ms=7)
        return
    change = step.bpb - before.bpb
    axes.plot([before.bpb] * 2, [row - 1, row], color=_GREY, lw=0.8, ls=":")
    # A score of learned text is no gain: its bar says so.
    honest = step.label != "in-sample"
    axes.barh(
        row, change, left=before.bpb, height=0.34, lw=1.2,
        color=(_GREEN if change <= 0 else _ORANGE) if honest else "none",
        edgecolor="none" if honest else _RED, hatch=None if honest else "////",
    )  # fmt: skip
    axes.plot([step.bpb] * 2, [row - 0.24, row + 0.24], color=_GREY, lw=2)
    text = f"{change:+.4f}".replace("-", "\u2212")
    axes.annotate(
        text, (max(before.bpb, step.bpb), row), (7, 0), textcoords="offset points", va="center"
    )


def losses(points: Sequence[dict[str, Any]], onset: Onset | None) -> Plot:
    """Training loss against seconds, with the learning rate below."""
    seconds = [point["elapsed_seconds"] for point in points]

    def draw(width: float) -> Figure:
        ratios = {"height_ratios": [4, 1]}
        with panels(2, 1, width, 4.2, sharex=True, gridspec_kw=ratios) as (figure, (top, below)):
            top.plot(seconds, [point["loss_nats"] for point in points], lw=1.6)
            top.set_ylabel("loss, nats a token")
            below.fill_between(seconds, [point["lr_factor"] for point in points], alpha=0.35, lw=0)
            below.plot(seconds, [point["lr_factor"] for point in points], lw=1.2)
            below.set_ylim(0, 1.15)
            below.set_yticks([0, 1])
            below.set_ylabel("rate\nfactor")
            below.set_xlabel("seconds of training")
            below.set_xlim(0, None)
            if onset is not None:
                for axes in (top, below):
                    axes.axvline(onset.seconds, color=_ORANGE, lw=1.2, ls="--")
                late = onset.seconds > 0.6 * seconds[-1]
                top.annotate(
                    f"recurrence on, {onset.visits} visits", (onset.seconds, 0.97),
                    (-6 if late else 6, 0), xycoords=("data", "axes fraction"),
                    textcoords="offset points", va="top", ha="right" if late else "left",
                    color=_ORANGE,
                )  # fmt: skip
        return figure

    return _both("Training loss and learning rate against seconds", draw)


def adaptation(epochs: Sequence[dict[str, Any]], before: Step) -> Plot:
    """Training loss and bits per byte by epoch; epoch 0 is the trained model."""
    scored = [epoch for epoch in epochs if "bpb" in epoch]
    numbers = [epoch["epoch"] for epoch in epochs]
    labels = ", ".join(dict.fromkeys(epoch["label"] for epoch in scored))
    color = _RED if "in-sample" in labels else _GREEN

    def draw(width: float) -> Figure:
        rows, columns = (1, 2) if width > 6 else (2, 1)
        with panels(rows, columns, width, 2.6 * rows) as (figure, (left, right)):
            left.plot(numbers, [epoch["train_loss_nats"] for epoch in epochs], "o-", lw=1.6, ms=4)
            left.set_ylabel("training loss, nats a token")
            places = [0, *(epoch["epoch"] for epoch in scored)]
            values = [before.bpb, *(epoch["bpb"] for epoch in scored)]
            complete = len(scored) == len(epochs)
            right.plot(places, values, "o-" if complete else "o:", color=color, lw=1.6, ms=4)
            right.plot([0], [before.bpb], "o", color=_GREY, ms=5)
            right.set_ylabel(f"BPB ({labels})")
            right.annotate(
                f"not adapted ({before.label})", (0, before.bpb), (8, 0),
                textcoords="offset points", va="center",
            )  # fmt: skip
            for axes in (left, right):
                axes.set_xlim(-0.3 if axes is right else 0.7, max(numbers) + 0.3)
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
                axes.yaxis.set_major_locator(_ticks(5))
        return figure

    return _both("Adaptation by epoch", draw)


def bar_chart(title: str, unit: str, rows: Sequence[Bar]) -> Plot:
    """Horizontal bars, each with its text."""

    def draw(width: float) -> Figure:
        with drawing(unit, "", width, 0.29 * len(rows) + 0.75) as (figure, axes):
            names, values, colors, texts = (list(column) for column in zip(*rows, strict=True))
            bars(axes, names, values, colors, texts)
            most = max(values) or 1
            axes.set_xlim(0, most * (1.16 if width > 6 else 1.5))
            axes.xaxis.set_major_locator(_ticks(4 if width < 6 else 8))
            axes.xaxis.set_major_formatter("{x:,.6g}")
        return figure

    return _both(title, draw)


def quantization_errors(matrices: dict[str, dict[str, float]]) -> Plot:
    """Relative error of every block matrix by layer, a panel a role."""
    by_role: dict[str, dict[int, dict[str, float]]] = {name: {} for name in MATRIX_NAMES}
    for name, figures in matrices.items():
        if name.startswith("blocks."):
            by_role[role(name)][int(name.split(".")[1])] = figures

    def draw(width: float) -> Figure:
        rows, columns = (2, 3) if width > 6 else (3, 2)
        options = {"sharex": True, "sharey": True}
        with panels(rows, columns, width, 2.0 * rows, **options) as (figure, axes_list):
            for axes, name in zip(axes_list, MATRIX_NAMES, strict=True):
                layers = sorted(by_role[name])
                for key, color, style in (
                    ("nearest_error", _GREY, "o--"), ("gptq_error", _BLUE, "o-"),
                ):  # fmt: skip
                    values = [100 * by_role[name][layer][key] for layer in layers]
                    axes.plot(layers, values, style, color=color, lw=1.4, ms=3.5)
                axes.set_title(name, loc="left", fontsize=11)
                axes.set_yscale("log")
                axes.yaxis.set_minor_formatter(NullFormatter())
                axes.yaxis.set_major_formatter("{x:g} %")
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            for axes in axes_list[-columns:]:
                axes.set_xlabel("layer")
        return figure

    return _both("Relative error of quantization by layer and role", draw)
