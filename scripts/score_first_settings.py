"""BPB and seconds of several settings of score-first learning, for one packed model.

Cost: about 5 minutes on one NVIDIA H200 (each chunk size is recorded once). Needs the folder
`corpus/` and a packed model with its tokenizer beside it. Expected: the rows of AdamW with one step
for each chunk in docs/experiments/score-first-settings.md.

    python scripts/score_first_settings.py --artifact runs/bench/not-adapted/model.bin
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path

import numpy as np

from paramgolf.config import ScoreFirstConfig
from paramgolf.data.documents import find_jsonl, read_jsonl
from paramgolf.runtime.device import select_runtime
from paramgolf.scoring.predictor import load_on

TARGETS = 2_883_584
LARGE, SMALL = 32_768, 8_192
SETTINGS = [
    ScoreFirstConfig(),
    *(ScoreFirstConfig("adamw", lr, LARGE) for lr in (1e-4, 3e-4, 1e-3)),
    *(ScoreFirstConfig("adamw", lr, SMALL) for lr in (1e-4, 3e-4, 6e-4, 1e-3)),
]
SLIDING_BEST = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, default=Path("corpus"))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--targets", type=int, default=TARGETS)
    arguments = parser.parse_args()
    predictor = load_on(arguments.artifact, None, select_runtime(arguments.device))
    files = find_jsonl(arguments.corpus, "val")
    texts = [text for path in files for _, text in read_jsonl(path)]
    stream = np.concatenate(predictor.tokenizer.encode(texts))[: arguments.targets + 1]
    num_bytes = int(predictor.tokenizer.token_bytes(stream).sum())

    def measure(config: ScoreFirstConfig, stride: int) -> float:
        start = time.monotonic()
        batch_tokens = 98_304 if stride else config.chunk_tokens
        predictor.artifact = dataclasses.replace(predictor.artifact, score_first=config)
        losses = predictor.losses(stream, stride, batch_tokens)
        bpb = float(losses.double().sum()) / math.log(2) / num_bytes
        name = f"{config.optimizer} | {config.lr} | {config.chunk_tokens:,}"
        seconds = time.monotonic() - start
        print(f"| {stride} | {name} | {bpb:.4f} | {seconds:.1f} |", flush=True)
        return bpb

    print("| stride | optimizer | lr | chunk | BPB | s |")
    print("|---:|---|---:|---:|---:|---:|")
    by_bpb = sorted(SETTINGS, key=lambda config: measure(config, 0))
    for config in [*by_bpb[:SLIDING_BEST], ScoreFirstConfig()]:
        measure(config, predictor.artifact.stride)


if __name__ == "__main__":
    main()
