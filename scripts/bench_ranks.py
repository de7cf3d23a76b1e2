"""Two ranks against one on the same machine: speed of every shared stage, and equal scores.

Cost: about 10 minutes on two NVIDIA H200s of one host. Needs the folder `corpus/` (the text and
tokenizer of the bench) in the current directory. Expected: the table of
docs/experiments/ranks-two-h100.md, 1.9 times the speed (training 1.85) and BPB equal to about
0.002.

    python scripts/bench_ranks.py --out /tmp/ranks
    python scripts/bench_ranks.py --out /tmp/ranks --cpu     # the recipe tiny, shrunk, on the CPU

Every run directory is resumable: a second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

GPU = [
    "h200-in-sample",
    "--train.max-steps=400",
    "--adapt.epochs=4",
    "--pack.calibration-batches=64",
]
CPU = ["tiny", "--device=cpu", "--train.max-steps=40", "--adapt.text=scored", "--adapt.epochs=2"]
SIZES = (2, 1)


def run(size: int, out: Path, options: list[str]) -> dict:
    """One run on `size` ranks; gives what it measured."""
    launch = [sys.executable, "-m"]
    if size > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"]
    fresh = not (out / "config.json").exists()
    rest = [*options, "--out", str(out)] if fresh else ["--resume", str(out)]
    subprocess.run([*launch, "paramgolf", "run", *rest], check=True)
    return json.loads((out / "results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    options = CPU if arguments.cpu else GPU
    results = {size: run(size, arguments.out / f"ranks{size}", options) for size in SIZES}
    two, one = results[2], results[1]
    print("\n| what | 1 rank | 2 ranks | ratio |\n|---|---:|---:|---:|")
    for name, value in one["tokens_per_second"].items():
        other = two["tokens_per_second"][name]
        if value and other:
            print(f"| tokens/s {name} | {value:,.0f} | {other:,.0f} | {other / value:.3f} |")
    for name, score in one["stages"].items():
        other = two["stages"][name]["bpb"]
        print(f"| BPB {name} | {score['bpb']:.4f} | {other:.4f} | {other - score['bpb']:+.4f} |")
    for name, value in one["seconds"].items():
        print(f"| s {name} | {value:.1f} | {two['seconds'].get(name, 0):.1f} | |")


if __name__ == "__main__":
    main()
