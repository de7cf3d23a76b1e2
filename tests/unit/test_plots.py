"""Plots are well-formed SVG and equal when drawn again; charts of a report place their values."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import jinja2
import numpy as np
import pytest

from paramgolf.report.figures import (
    Line,
    adaptation,
    losses,
    quantization_errors,
    score_axis,
    smoothed,
    two_losses,
)
from paramgolf.report.page import TEMPLATES
from paramgolf.study.plots import FONTS, SERIES, drawing, save_svg


def test_a_plot_is_black_on_white_and_its_text_stays_text(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with drawing("step", "loss <nats>") as (figure, axes):
            axes.plot([1, 2, 3], [3, 1, 2], label="training")
            axes.legend()
        save_svg(figure, tmp_path / f"{name}.svg")
    svg = (tmp_path / "one.svg").read_text()
    assert svg == (tmp_path / "two.svg").read_text()
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"step", "loss <nats>", "training"} <= set(texts)
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == {SERIES[0], "#000000", "#d8d8d8", "#ffffff"}


def test_all_figures_have_one_font(tmp_path: Path) -> None:
    with drawing("step", "loss") as (figure, axes):
        axes.set_title("a title", fontsize=10)
        axes.legend(["training"])
    save_svg(figure, tmp_path / "new.svg")
    paths = [tmp_path / "new.svg", *(Path(__file__).parents[2] / "docs").rglob("*.svg")]
    assert len(paths) > 5
    stack = ", ".join(f"'{name}'" for name in FONTS) + ", sans-serif"
    for path in paths:
        root = ElementTree.parse(path).getroot()
        inherited = root.get("font-family")
        for element in root.iter("{http://www.w3.org/2000/svg}text"):
            own = re.search("font-family: ([^;]*)", element.get("style", ""))
            assert (own[1] if own else inherited) == stack, (path, element.text)


def drawn_waterfall(scores: list[tuple[float, str]]) -> list[ElementTree.Element]:
    """Return the bars and changes of a waterfall of these scores and labels."""
    rows: list[dict[str, object]] = []
    for number, (bpb, label) in enumerate(scores):
        change = bpb - scores[number - 1][0] if number else None
        rows.append({"title": "a stage", "bpb": bpb, "label": label, "change": change})
    loader = jinja2.FileSystemLoader(TEMPLATES)
    charts = jinja2.Environment(loader=loader).get_template("charts.html.j2").module
    html = charts.waterfall(score_axis([bpb for bpb, _ in scores]), rows)  # type: ignore[attr-defined]
    return [
        element
        for element in ElementTree.fromstring(html).iter()
        if element.get("class", "").split()[:1] in (["bar"], ["change"])
    ]


def test_a_waterfall_has_every_change_between_its_scores() -> None:
    scores = [1.75, 1.5, 1.6, 1.6]
    elements = drawn_waterfall([(bpb, "held-out") for bpb in scores])
    bars, changes = elements[::2], elements[1::2]
    assert [bar.get("class") for bar in bars] == ["bar gain", "bar loss", "bar gain"]
    assert [change.text for change in changes] == ["\u22120.2500", "+0.1000", "+0.0000"]
    places = [list(map(float, re.findall(r"[\d.]+", bar.get("style", "")))) for bar in bars]
    axis = score_axis(scores)
    for (left, width), before, after in zip(places, scores, scores[1:], strict=False):
        assert left == pytest.approx(axis.place(min(before, after)), abs=0.01)
        assert left + width == pytest.approx(axis.place(max(before, after)), abs=0.02)
        assert 0 < left <= left + width < 100


def test_a_score_on_learned_text_is_no_gain() -> None:
    bar, _ = drawn_waterfall([(1.75, "held-out"), (0.9, "in-sample")])
    assert bar.get("class") == "bar in-sample"


@pytest.mark.parametrize("seed", range(20))
def test_axes_cover_their_values_with_round_ticks(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, scale = int(random.integers(2, 30)), 10.0 ** random.integers(-4, 5)
    seconds = np.cumsum(random.uniform(0.1, 1, count)) * scale
    values = random.normal(3, 1, count) * scale
    points = [
        {"elapsed_seconds": float(s), "loss_nats": float(v), "lr_factor": 0.5}
        for s, v in zip(seconds, values, strict=True)
    ]
    chart, _ = losses(points, (float(seconds[-1]) / 2, "a note"))
    assert chart.onset is not None
    assert chart.onset == (pytest.approx(50), "a note")
    for axis, least in ((chart.x, 5), (chart.y, 4)):
        assert least <= len(axis.ticks) <= 13
        assert len({text for _, text in axis.ticks}) == len(axis.ticks)
        for place, text in axis.ticks:
            assert -1e-6 <= place <= 100 + 1e-6
            assert axis.place(float(text.replace(",", ""))) == pytest.approx(place)
    line = chart.lines[0]
    assert len(chart.lines) == (2 if count >= 15 else 1)
    for (x, y), second, value in zip(line.points, seconds, values, strict=True):
        assert 0 < x <= 100 + 1e-9
        assert 0 < y < 100
        assert (x, 100 - y) == pytest.approx((chart.x.place(second), chart.y.place(value)))


def test_a_smoothed_line_has_the_trend_without_the_noise() -> None:
    random, x = np.random.default_rng(1), np.linspace(0, 300, 200)
    trend = 3 + 4 * np.exp(-x / 40)
    line = np.array(smoothed(x.tolist(), (trend + random.normal(0, 0.2, 200)).tolist()))
    assert np.abs(line - trend)[20:].std() < 0.2 / 2
    exact = np.array(smoothed(x.tolist(), trend.tolist()))
    assert np.abs(exact - trend).max() < 0.1  # also where it falls steeply
    assert smoothed([0.0, 1.0, 2.0], [5.0, 5.0, 5.0]) == pytest.approx([5, 5, 5])


def test_the_loss_on_validation_text_is_a_point_at_the_end() -> None:
    points = [
        {"elapsed_seconds": 2.0 * step, "loss_nats": 7 - 0.1 * step, "lr_factor": 1.0}
        for step in range(1, 21)
    ]
    chart, _ = losses(points, None, 6.5)
    kinds = [line.kind for line in chart.lines]
    assert kinds == ["training raw", "training smooth", "validation"]
    assert chart.lines[2].points == [(100, pytest.approx(100 - chart.y.place(6.5)))]
    assert 0 < chart.y.place(6.5) < 100


def test_two_runs_share_both_axes() -> None:
    a, b = (
        [{"step": 10 * n, "loss_nats": base - 0.1 * n} for n in range(1, count)]
        for base, count in ((7.0, 21), (9.0, 6))
    )
    chart = two_losses(a, b)
    assert [line.kind for line in chart.lines] == ["run-a raw", "run-a smooth", "run-b"]
    assert chart.lines[0].points[-1][0] == 100
    assert chart.lines[2].points[-1] == (25, pytest.approx(100 - chart.y.place(8.5)))


def test_adaptation_without_every_score_is_dotted() -> None:
    epochs = [
        {"epoch": 1, "train_loss_nats": 3.4},
        {"epoch": 2, "train_loss_nats": 3.3, "bpb": 1.7, "label": "in-sample"},
    ]
    _, bpb = adaptation(epochs, {"bpb": 1.8, "label": "held-out"})
    assert bpb.y.title == "BPB (in-sample; epoch 0: held-out)"
    assert bpb.lines[0].kind == "in-sample sparse"
    assert [bpb.x.place(0), bpb.x.place(2)] == [x for x, _ in bpb.lines[0].points]


def test_errors_of_quantization_share_a_logarithmic_axis() -> None:
    names = ("query", "key", "value", "output", "up", "down")
    matrices = {
        f"blocks.{layer}.{name}": {"nearest_error": 0.02 + layer / 100, "gptq_error": 0.003}
        for layer in range(3)
        for name in names
    }
    charts = quantization_errors({**matrices, "embedding": {"nearest_error": 0.9}})
    assert [chart.title for chart in charts] == list(names)
    for chart in charts:
        assert [text for _, text in chart.y.ticks] == ["0.2 %", "0.5 %", "1 %", "2 %", "5 %"]
        assert [text for _, text in chart.x.ticks] == ["0", "1", "2"]
        nearest, gptq = chart.lines
        assert chart.y.place(2.0) == pytest.approx(100 - nearest.points[0][1])
        assert {y for _, y in gptq.points} == {100 - chart.y.place(0.3)}


def test_a_line_is_path_data() -> None:
    line = Line("training", [(0.0, 50.0), (33.333, 25.0)])
    assert line.path == "M0.00 50.00L33.33 25.00"
    assert line.dots == "M0.00 50.00h0M33.33 25.00h0"
