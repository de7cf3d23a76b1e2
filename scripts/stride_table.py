"""Score a run's artifact at several strides: bits per byte and seconds.

Cost: for a run of the recipe h200 on one GPU some minutes; for one of tiny on two cores as long.
Seconds contain what each stride records or compiles anew, and not what all share. Expected: BPB
falls with the stride, by less each time, while the seconds double.

    python scripts/stride_table.py --run runs/h200-...
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from paramgolf.data.prepared import PreparedText
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.predictor import load_on

STRIDES = (1024, 512, 256, 128, 64)
WARM_UP_WINDOWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--strides", type=int, nargs="+", default=STRIDES, help="0: plain windows")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    run, _, _ = RunDir.open(arguments.run)
    runtime = select_runtime(arguments.device)
    predictor = load_on(run.artifact, run.tokenizer, runtime)
    text = PreparedText.of(run).scored_text(run.data, predictor.tokenizer)
    seq_len = predictor.artifact.model.seq_len
    predictor.losses(text.tokens[: WARM_UP_WINDOWS * seq_len + 1], stride=0, fixed=True)
    print(f"{len(text.tokens) - 1:,} targets, windows of {seq_len}, without learning")
    print("| stride | BPB | s | scored tokens/s |\n|---:|---:|---:|---:|")
    for stride in arguments.strides:
        if stride > seq_len:
            continue
        began = time.perf_counter()
        losses = predictor.losses(text.tokens, stride, fixed=True).cpu()
        seconds = time.perf_counter() - began
        bpb = predictor.score_of(losses, text, fixed=True).bpb
        speed = f"{len(losses) / seconds:,.0f}"
        print(f"| {stride} | {bpb:.4f} | {seconds:.1f} | {speed} |", flush=True)


if __name__ == "__main__":
    main()
