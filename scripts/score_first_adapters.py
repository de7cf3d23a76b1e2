"""BPB of a finished run's validation text for several settings of what documents learn.

Cost: about 25 minutes on one core for a run of the recipe tiny. Expected: the tables of
docs/experiments/score-first-adapters.md.

    python scripts/score_first_adapters.py --run runs/tiny-...
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramgolf.config import ScoreFirstConfig
from paramgolf.data.prepared import PreparedText
from paramgolf.data.shards import document_starts
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.predictor import load_on

MODEL = ScoreFirstConfig("adamw", 3e-4, chunk_tokens=1024)
DOCUMENTS = ScoreFirstConfig(adapter_rank=8, adapter_lr=1e-2)
SETTINGS = [
    MODEL,
    *(replace(DOCUMENTS, adapter_lr=lr) for lr in (1e-3, 3e-3, 5e-3, 2e-2)),
    *(replace(DOCUMENTS, adapter_rank=rank) for rank in (2, 4, 16)),
    *(replace(DOCUMENTS, adapter_tokens=tokens) for tokens in (128, 32)),
    replace(DOCUMENTS, adapter_tokens=32, adapter_lr=5e-3),
    replace(MODEL, adapter_rank=8, adapter_lr=1e-2),
    replace(DOCUMENTS, adapter_tokens=16, adapter_lr=5e-3),
    DOCUMENTS,
]
LENGTHS = [0, 64, 256, 1024, 4096, 1 << 30]


def by_length(gains_N: NDArray[np.float64], starts: NDArray[np.int64], num_targets: int) -> None:
    """Print the bits that a token gains, by the length of its document and its place in it."""
    lengths = np.diff(np.append(starts, num_targets))
    length = np.repeat(lengths, lengths)
    place = np.arange(num_targets) - np.repeat(starts[: len(lengths)], lengths)
    print("| tokens | documents of this length | bits per token | bits per token at this place |")
    print("|---|---:|---:|---:|")
    for low, high in itertools.pairwise(LENGTHS):
        documents = int(((low <= lengths) & (lengths < high)).sum())
        means = [
            float(gains_N[(low <= x) & (x < high)].mean()) if documents else math.nan
            for x in (length, place)
        ]
        print(f"| from {low:,} | {documents} | {means[0]:+.3f} | {means[1]:+.3f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    run, _, _ = RunDir.open(arguments.run)
    predictor = load_on(run.artifact, None, select_runtime(arguments.device))
    text = PreparedText.of(run).scored_text(run.data, predictor.tokenizer)
    print("| model | rank | rate | chunk | BPB | s |\n|---|---:|---:|---:|---:|---:|")

    def losses(config: ScoreFirstConfig) -> NDArray[np.float64]:
        predictor.artifact = replace(predictor.artifact, score_first=config)
        begin = time.monotonic()
        found = predictor.losses(text.tokens).double().cpu().numpy() / math.log(2)
        name = f"{config.optimizer} | {config.adapter_rank} | {config.adapter_lr}"
        bpb, seconds = found.sum() / text.bytes, time.monotonic() - begin
        print(f"| {name} | {config.adapter_tokens} | {bpb:.4f} | {seconds:.0f} |", flush=True)
        return found

    fixed = losses(ScoreFirstConfig())
    for config in SETTINGS[:-1]:
        losses(config)
    gains = fixed - losses(SETTINGS[-1])
    starts = document_starts(text.tokens[:-1], predictor.tokenizer.bos)
    by_length(gains, starts, len(gains))


if __name__ == "__main__":
    main()
