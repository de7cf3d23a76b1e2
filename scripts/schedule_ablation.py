"""The learning-rate schedule of adaptation: one cosine over all epochs, or a restart in each.

Adapts one trained model on the scored text (in-sample, as the reference did) for E and 3 E epochs
under both schedules, and scores it after every epoch.

Cost: 8 E epochs; with E = 6 on one NVIDIA H200 about 6 minutes, besides the training that it starts
from. Expected: the table of docs/experiments/adaptation-schedule.md.

    python scripts/schedule_ablation.py --run /tmp/bench/not-adapted --epochs 6 --out /tmp/ablation
    python scripts/schedule_ablation.py --out /tmp/ablation --plot docs/experiments/schedule.svg
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Literal, cast

SCHEDULES = ("restart-every-epoch", "cosine-over-epochs")


def adapt(source: Path, out: Path, schedule: str, epochs: int) -> list[float]:
    """Adapt the run's trained weights and return the BPB after every epoch."""
    from paramgolf.pipeline.run import new_run
    from paramgolf.runtime.console import standard_output
    from paramgolf.runtime.device import select_runtime
    from paramgolf.runtime.rundir import RunDir
    from paramgolf.stages import adapt as stage
    from paramgolf.stages.job import Job

    _, recipe, config = RunDir.open(source)
    kind = cast(Literal["restart-every-epoch", "cosine-over-epochs"], schedule)
    changes = dataclasses.replace(
        config.adapt, text="scored", epochs=epochs, schedule=kind, score_every_epoch=True
    )
    config = dataclasses.replace(config, adapt=changes)
    run = new_run(recipe, config, out, source)
    job = Job(config, run, select_runtime(config.device), standard_output())
    return [epoch["bpb"] for epoch in stage.run(job)["epochs"]]


def plot(curves: dict[str, list[float]], path: Path) -> None:
    """Draw BPB against epochs."""
    from paramgolf.study.plots import drawing, save_svg

    with drawing("epochs on the scored text", "BPB after adaptation (in-sample)") as (figure, axes):
        for name, curve in curves.items():
            style = "--" if name.startswith("restart") else "-"
            axes.plot(range(1, len(curve) + 1), curve, style, marker="o", markersize=3, label=name)
        axes.set_xticks(range(2, 1 + max(map(len, curves.values())), 2))
        axes.legend()
    save_svg(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="a run that has finished training")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    file = arguments.out / "curves.json"
    curves = json.loads(file.read_text()) if file.exists() else {}
    if arguments.run:
        for epochs in (arguments.epochs, 3 * arguments.epochs):
            for schedule in SCHEDULES:
                name = f"{schedule}, {epochs} epochs"
                if name not in curves:
                    out = arguments.out / name.replace(", ", "-").replace(" ", "-")
                    curves[name] = adapt(arguments.run, out, schedule, epochs)
                    file.write_text(json.dumps(curves, indent=1))
    print("\n| schedule | BPB after the last epoch | best |\n|---|---:|---:|")
    for name, curve in curves.items():
        print(f"| {name} | {curve[-1]:.4f} | {min(curve):.4f} |")
    if arguments.plot:
        plot(curves, arguments.plot)


if __name__ == "__main__":
    main()
