"""Schedules: pure functions of the elapsed share of a budget."""

from __future__ import annotations

import math


def warmdown(share: float, warmdown_share: float) -> float:
    """Return the learning-rate factor: 1, then linear to 0 over the last share of the budget."""
    if warmdown_share == 0:
        return 1.0
    return max(0.0, min(1.0, (1 - share) / warmdown_share))


def momentum(share: float, start: float, end: float, warmup_share: float) -> float:
    """Return the momentum: linear from `start` to `end` over the first share of the budget."""
    if share >= warmup_share:
        return end
    return start + (end - start) * share / warmup_share


def averaging(passed: float, horizon: float) -> float:
    """Return the share of new weights in an average after `passed` of the budget since the last.

    Old ones lose a factor e in every `horizon` of the budget, whatever the number of steps.
    """
    return 1 - math.exp(-passed / horizon)


def cosine(share: float, start: float, end: float) -> float:
    """Return a half-cosine's value, `start` at share 0 and `end` at share 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
