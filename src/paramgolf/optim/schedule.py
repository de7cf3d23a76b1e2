"""Schedules as pure functions of the elapsed share of the budget, the step, or the epoch."""

from __future__ import annotations

import math


def warmdown(share: float, warmdown_share: float) -> float:
    """Learning-rate factor: 1, then linear to 0 over the last `warmdown_share` of the budget."""
    if warmdown_share == 0:
        return 1.0
    return max(0.0, min(1.0, (1 - share) / warmdown_share))


def momentum(step: int, start: float, end: float, warmup_steps: int) -> float:
    """Momentum at a step counted from 0: linear from `start` to `end` over `warmup_steps`."""
    if step >= warmup_steps:
        return end
    return start + (end - start) * step / warmup_steps


def cosine(share: float, start: float, end: float) -> float:
    """Half a cosine from `start` at share 0 to `end` at share 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
