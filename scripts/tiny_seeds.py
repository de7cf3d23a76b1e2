"""BPB of the recipe tiny over seeds: where the ceiling of tests/e2e/test_tiny_quality.py is from.

Cost: about 4 minutes a seed on 2 cores. Expected: the table of docs/experiments.md.

    python scripts/tiny_seeds.py --out runs/seeds --seeds 1337 42 999 7 2024
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    arguments = parser.parse_args()
    scores, rows = [], []
    for seed in arguments.seeds:
        out = arguments.out / str(seed)
        if not (out / "results.json").exists():
            begin = ["--resume", str(out)] if (out / "config.json").exists() else ["tiny"]
            rest = [] if begin[0] == "--resume" else ["--seed", str(seed), "--out", str(out)]
            subprocess.run([sys.executable, "-m", "paramgolf", "run", *begin, *rest], check=True)
        results = json.loads((out / "results.json").read_text())
        stages = [f"{score['bpb']:.4f}" for score in results["stages"].values()]
        scores.append(results["stages"]["sliding"]["bpb"])
        rows.append(f"| {seed} | {' | '.join(stages)} | {results['bytes']['total']:,} |")
    print(
        "\n| seed | after EMA | after adaptation | quantized, plain | quantized, sliding | bytes |"
    )
    print("|---|---:|---:|---:|---:|---:|", *rows, sep="\n")
    if len(scores) > 1:
        mean, deviation = statistics.mean(scores), statistics.stdev(scores)
        print(f"mean {mean:.4f}, std {deviation:.4f}, mean + 4 std {mean + 4 * deviation:.4f}")


if __name__ == "__main__":
    main()
