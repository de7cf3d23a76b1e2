"""Draw the figures of docs/method.md from a finished run and from functions that its stages call.

Takes seconds, and a run (`paramgolf run tiny`, minutes on two cores). Writes SVG files.

    python scripts/method_figures.py RUN --out docs/figures
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import NullFormatter

from paramgolf.model.order import layer_order
from paramgolf.model.roles import MATRIX_NAMES
from paramgolf.optim.muon import COEFFICIENTS, NUM_ITERATIONS
from paramgolf.recipes import RECIPES
from paramgolf.report.page import RunFiles, read_run_files
from paramgolf.report.sections import recurrence_onset, training_points
from paramgolf.scoring.windows import Windows, plain_windows, sliding_windows
from paramgolf.study.plots import SERIES, drawing, panels, save_svg


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


def draw_training(files: RunFiles, path: Path) -> None:
    """Training loss against seconds, with the learning-rate factor below."""
    points = training_points(files.run.read_events())
    onset = recurrence_onset(points, files.config)
    seconds = [point["elapsed_seconds"] for point in points]
    options = {"sharex": True, "gridspec_kw": {"height_ratios": [4, 1]}}
    with panels(2, 1, 10.0, 4.2, **options) as (figure, (top, bottom)):
        top.plot(seconds, [point["loss_nats"] for point in points], lw=1.6)
        top.set_ylabel("loss, nats per token")
        bottom.plot(seconds, [point["lr_factor"] for point in points], lw=1.2)
        bottom.set_ylim(0, 1.15)
        bottom.set_ylabel("learning-\nrate factor")
        bottom.set_xlabel("seconds of training")
        if onset is not None:
            for axes in (top, bottom):
                axes.axvline(onset, color=SERIES[1], lw=1.2, ls="--")
            top.annotate(
                f"recurrence on, {files.config.model.loop_visits} visits", (onset, 0.97), (6, 0),
                xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
                color=SERIES[1],
            )  # fmt: skip
    save_svg(figure, path)


def draw_stages(files: RunFiles, path: Path) -> None:
    """Bits per byte from stage to stage, better to the left."""
    stages = files.results["stages"]
    bpb = [score["bpb"] for score in stages.values()]
    with drawing("bits per byte (the axis does not start at 0)", "", 10.0, 2.9) as (figure, axes):
        axes.plot(bpb[0], 0, "o", color=SERIES[5], ms=7)
        for row, (before, after) in enumerate(itertools.pairwise(bpb), start=1):
            color = SERIES[2] if after <= before else SERIES[1]
            axes.plot([before, before], [row - 1, row], color=SERIES[5], lw=0.8, ls=":")
            axes.barh(row, after - before, left=before, height=0.34, color=color)
            axes.annotate(
                f"{after - before:+.4f}", (max(before, after), row), (7, 0),
                textcoords="offset points", va="center",
            )  # fmt: skip
        names = [f"{name}\n{score['bpb']:.4f} {score['label']}" for name, score in stages.items()]
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        span = max(bpb) - min(bpb)
        axes.set_xlim(min(bpb) - 0.06 * span, max(bpb) + 0.14 * span)
        axes.grid(axis="y", visible=False)
    save_svg(figure, path)


def draw_quantization(files: RunFiles, path: Path) -> None:
    """Relative error of every block matrix by layer, one panel per role."""
    layers = range(files.config.model.num_layers)
    options = {"sharex": True, "sharey": True}
    with panels(2, 3, 10.0, 4.0, **options) as (figure, axes_list):
        for axes, name in zip(axes_list, MATRIX_NAMES, strict=True):
            matrices = [files.quantization[f"blocks.{layer}.{name}"] for layer in layers]
            for key, color, style in (
                ("nearest_error", SERIES[5], "o--"), ("gptq_error", SERIES[0], "o-"),
            ):  # fmt: skip
                percents = [100 * figures[key] for figures in matrices]
                axes.plot(layers, percents, style, color=color, lw=1.4, ms=3.5)
            axes.set_title(name, loc="left", fontsize=11)
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter("{x:g} %")
        for axes in axes_list[-3:]:
            axes.set_xlabel("layer")
    save_svg(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    files, out = read_run_files(arguments.run), arguments.out
    draw_layers(out / "layers.svg")
    draw_muon(out / "muon.svg")
    draw_windows(out / "windows.svg")
    draw_training(files, out / "training.svg")
    draw_stages(files, out / "stages.svg")
    draw_quantization(files, out / "quantization.svg")


if __name__ == "__main__":
    main()
