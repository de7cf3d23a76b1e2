"""Seconds and peak memory of one chunk of score-first learning on a CPU.

Cost: half a minute on two cores. Expected: the figures of
docs/experiments/score-first-cpu-memory.md.

    python scripts/learning_memory.py                       # in passes, as paramgolf does it
    python scripts/learning_memory.py --pass-tokens 8192    # all targets in one pass
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace

import numpy as np
import torch

from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.recipes import RECIPES
from paramgolf.runtime.device import select_runtime
from paramgolf.scoring.score_first import PASS_TOKENS, Learner


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="h200-score-first", choices=RECIPES)
    parser.add_argument("--targets", type=int, default=8192)
    parser.add_argument("--pass-tokens", type=int, default=PASS_TOKENS["cpu"])
    arguments = parser.parse_args()
    PASS_TOKENS["cpu"] = arguments.pass_tokens
    runtime = select_runtime("cpu")
    _, config = RECIPES[arguments.recipe]
    model = GPT(config.model, runtime.dtype)
    model.init_weights(torch.Generator().manual_seed(1337))
    learning = replace(config.score_first, chunk_tokens=arguments.targets)
    learner = Learner(model, layer_order(config.model, recurrent=True), learning, num_chunks=2)
    rng = np.random.default_rng(1337)
    tokens = rng.integers(0, config.model.vocab_size, arguments.targets + 1, dtype=np.uint16)
    begin = time.monotonic()
    learner.learn(0, tokens)
    seconds = time.monotonic() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{arguments.targets:,} targets: {seconds:.0f} s, peak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()
