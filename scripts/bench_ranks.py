"""Two ranks against one on the same machine: speed of every stage they share, and equal scores.

Cost: about 10 minutes on two NVIDIA H100 or H200 GPUs of one host. Needs the folder `corpus/` (text
and tokenizer of the benchmark) in the current directory. Expected: the table of
docs/experiments/ranks-two-h100.md: 1.9 times the speed (training 1.85) and BPB equal to about
0.002.

    python scripts/bench_ranks.py --out /tmp/ranks
    python scripts/bench_ranks.py --out /tmp/ranks --cpu     # the recipe tiny, shortened, on a CPU

If interrupted, the same command resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runs import run_or_resume

GPU = (
    "h200-in-sample",
    ["--train.max-steps=400", "--adapt.epochs=4", "--pack.calibration-batches=64"],
)
CPU = (
    "tiny",
    ["--device=cpu", "--train.max-steps=40", "--adapt.text=scored", "--adapt.epochs=2"],
)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    recipe, options = CPU if arguments.cpu else GPU
    two = run_or_resume(recipe, arguments.out / "ranks2", options, TORCHRUN)
    one = run_or_resume(recipe, arguments.out / "ranks1", options)
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
