"""Time training steps of the recipe h200 on synthetic tokens: two batch sizes, both layer orders.

Cost: a minute on one H200. Needs a CUDA GPU, no text. Expected: the "after" columns of
docs/experiments/gpu-steps.md.

    python scripts/step_speed.py
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch

from paramgolf.optim.trainer import StepPlan, Trainer
from paramgolf.recipes import RECIPES
from paramgolf.runtime.device import select_runtime

BATCHES = (196_608, 49_152)
MICRO_BATCH = 98_304


def median_seconds(step: Callable[[], object], count: int = 12) -> float:
    """Return the median time between the ends of steps, of which the next is always waiting."""
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(count + 2)]
    for number, end in enumerate(ends):
        if number >= 2:
            ends[number - 2].synchronize()
        step()
        end.record()
    torch.cuda.synchronize()
    seconds = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(ends)]
    return sorted(seconds[1:])[count // 2]


def main() -> None:
    config = RECIPES["h200"][1]
    print(torch.cuda.get_device_name(), torch.__version__)
    print("| tokens per step | recurrence | ms | M tokens/s |\n|---:|---|---:|---:|")
    for batch in BATCHES:
        sizes = {"batch_tokens": batch, "micro_batch_tokens": min(batch, MICRO_BATCH)}
        train = dataclasses.replace(config.train, **sizes)
        trainer = Trainer(dataclasses.replace(config, train=train), select_runtime("cuda"))
        trainer.warm_up()
        shape = (trainer.batch_sequences, config.model.seq_len + 1)
        tokens = torch.randint(config.model.vocab_size, shape, dtype=torch.int32).cuda()
        for recurrent in (False, True):
            plan = StepPlan(recurrent, lr_factor=1e-6, momentum=0.9)
            seconds = median_seconds(lambda t=trainer, x=tokens, p=plan: t.train_step(x, p))
            figures = f"{seconds * 1e3:.1f} | {batch / seconds / 1e6:.3f}"
            print(f"| {batch:,} | {'on' if recurrent else 'off'} | {figures} |", flush=True)
        del trainer
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
