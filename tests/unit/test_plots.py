"""Plots are well-formed SVG, take the page's colours, and are the same when drawn again."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from paramgolf.report.svg import SERIES, drawing, inline_svg, save_svg

TITLE = 'loss & "time"'


def draw() -> str:
    with drawing("step", "loss <nats>") as (figure, axes):
        axes.plot([1, 2, 3], [3, 1, 2], label="training")
        axes.legend()
        axes.text(2, 2, "a note")
    return inline_svg(figure, TITLE)


def test_an_inline_plot_takes_the_colours_of_the_page() -> None:
    svg = draw()
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == TITLE
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == {SERIES[0]}
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"step", "loss <nats>", "training", "a note"} <= set(texts)
    assert svg == draw()


def test_a_plot_of_its_own_is_black_on_white(tmp_path: Path) -> None:
    with drawing("x", "y") as (figure, axes):
        axes.plot([0, 1], [0, 1])
    save_svg(figure, tmp_path / "plot.svg")
    svg = (tmp_path / "plot.svg").read_text()
    ElementTree.fromstring(svg)
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == {SERIES[0], "#000000", "#d8d8d8", "#ffffff"}
