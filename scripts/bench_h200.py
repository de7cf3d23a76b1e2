"""Benchmark on one H200: one training and both branches from it, beside the reference's figures.

Cost: about 12 minutes on one NVIDIA H200 with 16 CPU cores. Needs the folder `corpus/` (text and
tokenizer of the benchmark) in the current directory. Expected: the table of
docs/experiments/bench-h200.md.

    python scripts/bench_h200.py --out runs/bench            # both branches
    python scripts/bench_h200.py --out runs/smoke --smoke    # a test of the script in 3 minutes
    python scripts/bench_h200.py --out runs/bench --table    # print the table again

If interrupted, the same command resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from runs import run_or_resume

SMOKE = [
    "--train.max-seconds=15",
    "--adapt.epochs=2",
    "--pack.calibration-batches=8",
    "--pack.budget-bytes=40000000",
    "--data.val-targets=393216",
]

REFERENCE = {
    "tokens/s, recurrence off": 855_000,
    "tokens/s, recurrence on": 621_000,
    "tokens/s, adaptation steps": 739_000,
    "scored tokens/s, sliding": 58_100,
    "BPB, not adapted, sliding": 1.2194,
    "BPB, in-sample, full precision": 1.0455,
    "bytes that count": 15_996_242 + 82_820,
    "peak GPU bytes": 40_400_000_000,
}


def figures(plain: dict, adapted: dict) -> dict[str, float | None]:
    speed = plain["tokens_per_second"]
    return {
        "tokens/s, recurrence off": speed["train_recurrence_off"],
        "tokens/s, recurrence on": speed["train_recurrence_on"],
        "tokens/s, adaptation steps": adapted["tokens_per_second"]["adapt_steps"],
        "scored tokens/s, sliding": speed["score_sliding"],
        "BPB, not adapted, sliding": plain["stages"]["sliding"]["bpb"],
        "BPB, in-sample, full precision": adapted["stages"]["adapted"]["bpb"],
        "bytes that count": plain["bytes"]["total"],
        "peak GPU bytes": plain["peak_gpu_bytes"],
    }


def print_table(out: Path) -> None:
    runs = {}
    for name in ("not-adapted", "in-sample"):
        runs[name] = json.loads((out / name / "results.json").read_text())
    print("\n| what | reference | here |\n|---|---:|---:|")
    for name, value in figures(runs["not-adapted"], runs["in-sample"]).items():
        shown = "-" if value is None else f"{value:,.4f}" if value < 10 else f"{value:,.0f}"
        print(f"| {name} | {REFERENCE[name]:,} | {shown} |")
    for name, result in runs.items():
        print(f"\n{name}: {result['steps']} steps; {result['bytes']['total']:,} bytes")
        for stage, score in result["stages"].items():
            print(f"  {stage:<10} {score['bpb']:.4f} BPB  {score['label']}")
        curve = [f"{epoch['bpb']:.4f}" for epoch in result["adaptation"] if "bpb" in epoch]
        if curve:
            print("  by epoch   " + " ".join(curve))
        for phase, seconds in result["seconds"].items():
            print(f"  {phase:<28} {seconds:8.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    options = SMOKE if arguments.smoke else []
    if not arguments.table:
        plain = arguments.out / "not-adapted"
        run_or_resume("h200", plain, options)
        adapted = arguments.out / "in-sample"
        run_or_resume("h200-in-sample", adapted, ["--from", str(plain), *options])
    print_table(arguments.out)


if __name__ == "__main__":
    main()
