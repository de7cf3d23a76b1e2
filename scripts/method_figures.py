"""Draw the figures of docs/method.md from a finished run and from functions that its stages call.

Takes seconds, and a run (`paramgolf run tiny`, minutes on two cores). Writes SVG files.

    python scripts/method_figures.py RUN --out docs/figures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.patches import FancyArrowPatch

from paramgolf.model.order import layer_order
from paramgolf.optim.muon import COEFFICIENTS, NUM_ITERATIONS
from paramgolf.recipes import RECIPES
from paramgolf.report import sections
from paramgolf.report.page import read_run_files
from paramgolf.runtime.files import write_bytes
from paramgolf.scoring.windows import Windows, plain_windows, sliding_windows
from paramgolf.study.plots import SERIES, drawing, save_svg


def draw_layers(path: Path) -> None:
    """Draw in which order the record's blocks run, and which visits a skip connects."""
    order = layer_order(RECIPES["record"][1].model, recurrent=True)
    visits = [*order.encoder, *order.decoder]
    half = len(order.encoder)
    with drawing("visit", "block", 7.2, 3.6) as (figure, axes):
        for place in range(half):
            arrow = FancyArrowPatch(
                (half - 1 - place, visits[half - 1 - place]), (half + place, visits[half + place]),
                connectionstyle="arc3,rad=-0.28", arrowstyle="-|>", mutation_scale=8,
                color=SERIES[5], lw=0.8, ls=":", shrinkA=5, shrinkB=5,
            )  # fmt: skip
            axes.add_patch(arrow)
        for name, places, color in (
            ("first half: output is kept", range(half), SERIES[0]),
            ("second half: kept output is blended in", range(half, len(visits)), SERIES[1]),
        ):
            axes.plot(places, [visits[i] for i in places], "o-", color=color, label=name, lw=1)
        axes.plot([], [], ":", color=SERIES[5], label="skip")
        axes.set_yticks(range(max(visits) + 1))
        axes.legend(loc="upper left")
    save_svg(figure, path)


def draw_muon(path: Path) -> None:
    """Draw a singular value after rounds of the polynomial, against the one before."""
    a, b, c = COEFFICIENTS
    values = before = np.linspace(0, 1, 800)
    with drawing("singular value before", "after") as (figure, axes):
        axes.plot(before, before, color=SERIES[5], ls=":", label="unchanged")
        for number in range(1, NUM_ITERATIONS + 1):
            values = a * values + b * values**3 + c * values**5
            if number in (1, NUM_ITERATIONS):
                axes.plot(before, values, label=f"after round {number}")
        axes.legend()
    save_svg(figure, path)


def contexts(windows: list[Windows], num_targets: int, seq_len: int) -> np.ndarray:
    """Return the number of tokens that each target is predicted from, (num_targets,)."""
    found = np.zeros(num_targets, int)
    for starts, scored in windows:
        for start in starts:
            for offset in range(seq_len - scored, seq_len):
                if start + offset < num_targets:
                    found[start + offset] = offset + 1
    return found


def draw_windows(path: Path) -> None:
    """Draw how many tokens each of the first targets is predicted from."""
    seq_len, stride, count = 2048, RECIPES["h200"][1].score.stride, 8192
    with drawing("target", "tokens of context") as (figure, axes):
        for name, windows in (
            ("plain", plain_windows(count, seq_len)),
            (f"sliding, every {stride}", sliding_windows(count, seq_len, stride)),
        ):
            axes.plot(contexts(windows, count, seq_len), label=name, lw=1)
        axes.set_ylim(0, seq_len * 1.05)
        axes.legend(loc="lower right")
    save_svg(figure, path)


def save_inline(svg: str, path: Path) -> None:
    """Write a plot of the report to a file, black on white."""
    svg = svg.replace("currentColor", "#000000").replace("var(--faint)", "#d8d8d8")
    svg = svg.replace("<svg", '<svg style="background: white"', 1)
    write_bytes(path, svg.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    files, out = read_run_files(arguments.run), arguments.out
    draw_layers(out / "layers.svg")
    draw_muon(out / "muon.svg")
    draw_windows(out / "windows.svg")
    for name, section in (
        ("training", sections.training(files.run, files.config)),
        ("stages", sections.scores(files.results)),
        ("quantization", sections.quantization(files.config, files.results, files.quantization)),
    ):
        save_inline(section["plot"].wide, out / f"{name}.svg")


if __name__ == "__main__":
    main()
