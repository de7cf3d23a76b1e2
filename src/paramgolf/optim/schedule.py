"""Schedules: pure functions of the step or of the elapsed share of a budget."""

from __future__ import annotations

import math


def warmdown(share: float, warmdown_share: float) -> float:
    """Return the learning-rate factor: 1, then linear to 0 over the last share of the budget."""
    if warmdown_share == 0:
        return 1.0
    return max(0.0, min(1.0, (1 - share) / warmdown_share))


def momentum(step: int, start: float, end: float, warmup_steps: int) -> float:
    """Return the momentum of a step, from 0: linear from `start` to `end` over `warmup_steps`."""
    if step >= warmup_steps:
        return end
    return start + (end - start) * step / warmup_steps


def cosine(share: float, start: float, end: float) -> float:
    """Return a half-cosine's value, `start` at share 0 and `end` at share 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
