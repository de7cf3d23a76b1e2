"""The charts of a report as data: texts, kinds (which choose a colour), and places in percent.

templates/charts.html.j2 draws them as HTML, with the lines in an SVG that stretches to the width of
its box. One chart therefore fits every width, and its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from paramgolf.model.roles import MATRIX_NAMES, role

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""By kind: the x and y values of a line."""
_MIN_SMOOTHED_POINTS = 15
_SMOOTHED_SHARE = 0.02
_MIN_PERCENT = 1e-4  # zero has no place on a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from `low` to `high`."""

    title: str
    low: float
    high: float
    labels: Mapping[float, str] | Mapping[int, str]
    """Text of every labelled value."""
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, in percent of the axis."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 100 * (value - low) / (high - low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of every labelled value."""
        return [(self.place(value), text) for value, text in self.labels.items()]


class Line(NamedTuple):
    """A line through points, given in percent of a chart with y pointing downwards."""

    kind: str
    points: list[tuple[float, float]]

    @property
    def path(self) -> str:
        """The line as SVG path data."""
        return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in self.points)

    @property
    def dots(self) -> str:
        """One zero-length stroke per point, which round line caps turn into a dot."""
        return "".join(f"M{x:.2f} {y:.2f}h0" for x, y in self.points)


@dataclass(frozen=True)
class LineChart:
    """Lines over two axes."""

    title: str
    x: Axis
    y: Axis
    lines: list[Line]
    onset: tuple[float, str] | None = None
    """Place of a vertical line, and a note on it."""
    size: str = "medium"
    """"tall", "medium", "small" or "flat"."""

    @property
    def gutter(self) -> int:
        """Width for the labels of the y axis in characters, the same for most charts."""
        return max(4, *(len(text) for _, text in self.y.ticks))


class Bar(NamedTuple):
    """A horizontal bar with its text."""

    name: str
    value: float
    kind: str
    text: str


def score_axis(bpb: Sequence[float]) -> Axis:
    """Return the axis of the chart of bits per byte from stage to stage."""
    return _padded_axis("bits per byte (the axis does not start at 0)", bpb, 3)


def losses(
    points: Sequence[dict[str, Any]],
    onset: tuple[float, str] | None,
    validation: float | None = None,
) -> list[LineChart]:
    """Return the charts of training loss and learning-rate factor against seconds.

    Args:
        points: the logged steps.
        onset: when depth recurrence was switched on, in seconds, and a note on it.
        validation: loss on the validation text after the last step.
    """
    seconds = [point["elapsed_seconds"] for point in points]
    loss = [point["loss_nats"] for point in points]
    factor = [point["lr_factor"] for point in points]
    x = _linear_axis("seconds of training", 0, seconds[-1] or 1.0, 5)
    note = onset and (x.place(onset[0]), onset[1])
    line = note and (note[0], "")
    y_factor = _linear_axis("learning-rate factor", 0, 1.1, 2)
    lines = _raw_and_smoothed("training", seconds, loss)
    if validation is not None:
        lines["validation"] = ([seconds[-1]], [validation])
    y_loss = _padded_axis("loss, nats per token", [y for _, ys in lines.values() for y in ys], 4)
    return [
        _line_chart("Training loss", x, y_loss, lines, note, "tall"),
        _line_chart(
            "Learning-rate factor", x, y_factor, {"factor": (seconds, factor)}, line, "flat"
        ),
    ]


def two_losses(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> LineChart:
    """Return the chart of the training losses of two runs against steps, given the logged steps."""
    lines: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for kind, points in (("run-a", a), ("run-b", b)):
        steps = [point["step"] for point in points]
        lines |= _raw_and_smoothed(kind, steps, [point["loss_nats"] for point in points])
    last = max(points[-1]["step"] for points in (a, b))
    values = [value for _, ys in lines.values() for value in ys]
    x = _linear_axis("steps", 0, last, 5)
    y = _padded_axis("training loss, nats per token", values, 4)
    return _line_chart("Training loss of both runs", x, y, lines, size="tall")


def _raw_and_smoothed(
    kind: str, xs: Sequence[float], ys: Sequence[float]
) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Return a line as it is and, if it has enough points, a smoothed one over it."""
    if len(xs) < _MIN_SMOOTHED_POINTS:
        return {kind: (xs, ys)}
    return {f"{kind} raw": (xs, ys), f"{kind} smooth": (xs, smoothed(xs, ys))}


def smoothed(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Return means of the values around each x, weighted by a normal distribution.

    Its standard deviation is 2 % of the range of x. The first values, which fall steeply, would
    be too high by an average over later ones only: there, the distribution is narrower.
    """
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    widths = np.minimum(_SMOOTHED_SHARE * (x[-1] - x[0]), (x - x[0]) / 2) + 1e-9
    weights = np.exp(-0.5 * ((x[:, None] - x) / widths[:, None]) ** 2)
    return (weights @ y / weights.sum(axis=1)).tolist()


def adaptation(epochs: Sequence[dict[str, Any]], before: dict[str, Any]) -> list[LineChart]:
    """Return the charts of training loss and BPB by epoch; epoch 0 is the score `before`."""
    scored = [epoch for epoch in epochs if "bpb" in epoch]
    numbers = [epoch["epoch"] for epoch in epochs]
    labels = ", ".join(dict.fromkeys(epoch.get("label", "no label") for epoch in scored))
    kind = "in-sample" if "in-sample" in labels else "gain"
    if len(scored) < len(epochs):
        kind += " sparse"  # dotted: there is no score between these points
    places = [0, *(epoch["epoch"] for epoch in scored)]
    values = [before["bpb"], *(epoch["bpb"] for epoch in scored)]
    train_losses = [epoch["train_loss_nats"] for epoch in epochs]
    x = _whole_axis("epoch", 0, numbers[-1])
    y_loss = _padded_axis("training loss, nats per token", train_losses, 4)
    y_bpb = _padded_axis(f"BPB ({labels}; epoch 0: {before['label']})", values, 4)
    return [
        _line_chart("Training loss by epoch", x, y_loss, {"training": (numbers, train_losses)}),
        _line_chart("Bits per byte by epoch", x, y_bpb, {kind: (places, values)}),
    ]


def quantization_errors(matrices: dict[str, dict[str, float]]) -> list[LineChart]:
    """Return one chart per role: relative error of every block matrix by layer."""
    by_role: dict[str, dict[int, dict[str, float]]] = {name: {} for name in MATRIX_NAMES}
    for name, figures in matrices.items():
        if name.startswith("blocks."):
            by_role[role(name)][int(name.split(".")[1])] = figures
    kinds = {"nearest": "nearest_error", "gptq": "gptq_error"}
    percents = {
        name: {
            kind: (
                sorted(layers),
                [max(100 * layers[layer][key], _MIN_PERCENT) for layer in sorted(layers)],
            )
            for kind, key in kinds.items()
        }
        for name, layers in by_role.items()
    }
    values = [v for lines in percents.values() for _, ys in lines.values() for v in ys]
    y = _log_axis(min(values), max(values), " %")
    return [
        _line_chart(name, _whole_axis("layer", 0, max(by_role[name])), y, lines, size="small")
        for name, lines in percents.items()
    ]


def _line_chart(
    title: str,
    x: Axis,
    y: Axis,
    lines: Lines,
    onset: tuple[float, str] | None = None,
    size: str = "medium",
) -> LineChart:
    """Return a chart of lines by kind, each given as its x and y values."""
    drawn = [
        Line(kind, [(x.place(a), 100 - y.place(b)) for a, b in zip(xs, ys, strict=True)])
        for kind, (xs, ys) in lines.items()
    ]
    return LineChart(title, x, y, drawn, onset, size)


def _linear_axis(title: str, low: float, high: float, min_ticks: int) -> Axis:
    """Return an axis with at least `min_ticks` ticks at multiples of 1, 2 or 5 times 10^n."""
    power = 10.0 ** math.ceil(math.log10(high - low))
    spacings = [power * share for share in (1, 0.5, 0.2, 0.1, 0.05, 0.02)]
    spacing = next(s for s in spacings if len(_multiples(low, high, s)) >= min_ticks)
    digits = max(0, -math.floor(math.log10(spacing) + 1e-9))
    values = [number * spacing for number in _multiples(low, high, spacing)]
    return Axis(title, low, high, {value: f"{value:,.{digits}f}" for value in values})


def _multiples(low: float, high: float, spacing: float) -> range:
    """Return the whole numbers whose product with `spacing` lies between `low` and `high`."""
    return range(math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9) + 1)


def _padded_axis(title: str, values: Sequence[float], min_ticks: int) -> Axis:
    """Return a linear axis with some space on both sides of the values."""
    low, high = min(values), max(values)
    space = 0.08 * (high - low) or 0.1
    return _linear_axis(title, low - space, high + space, min_ticks)


def _whole_axis(title: str, first: int, last: int) -> Axis:
    """Return a linear axis of whole numbers with at most seven ticks."""
    spacing = 1 + (last - first) // 7
    labels = {number: f"{number}" for number in range(first, last + 1, spacing)}
    return Axis(title, first - 0.3, last + 0.3, labels)


def _log_axis(low: float, high: float, unit: str) -> Axis:
    """Return an untitled logarithmic axis between two of the values 1, 2 and 5 times 10^n."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    low = max(value for value in values if value <= low * (1 + 1e-9))
    high = min(value for value in values if value >= high * (1 - 1e-9))
    ticks = [value for value in values if low <= value <= high]
    if len(ticks) > 6:
        ticks = [value for value in ticks if f"{value:e}"[0] == "1"]
    return Axis("", low, high, {value: f"{value:g}{unit}" for value in ticks}, logarithmic=True)
