"""Clip widths that fill a byte budget.

A clip that is e times as wide takes 1 / ln 2 bits a weight less: SDClip's integers have the entropy
b - log2(k) + constant. So one solve tells which clip would have filled the budget, but for what the
coder makes of it, which the second solve tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

MOST_SOLVES = 3
SLACK_BYTES = 900
_AIM_BYTES = 300  # below the limit, for the error that the last step may make
SMALLEST_CLIP, LARGEST_CLIP = 4.0, 60.0
"""Below, clipping costs more than finer steps gain; above, hardly anything is left."""


class Solve(NamedTuple):
    """What a clip came to."""

    clip: float
    size: int
    """Bytes of the file."""


def fills(size: int, limit: int) -> bool:
    """Whether a size is under the limit, by less than `SLACK_BYTES`."""
    return 0 <= limit - size < SLACK_BYTES


def next_clip(tried: Sequence[Solve], limit: int, num_weights: int) -> float:
    """The clip that should come closest to the limit from below.

    Args:
        tried: the solves so far, at least one.
        limit: bytes that the file may take.
        num_weights: numbers that are quantized.
    """
    nearest = min(tried, key=lambda solve: abs(solve.size - (limit - _AIM_BYTES)))
    slope = -num_weights / (8 * math.log(2))  # bytes per unit of ln(clip)
    others = [solve for solve in tried if abs(math.log(solve.clip / nearest.clip)) > 1e-4]
    if others:
        other = min(others, key=lambda solve: abs(solve.size - nearest.size))
        measured = (other.size - nearest.size) / math.log(other.clip / nearest.clip)
        slope = min(measured, slope / 4)  # it falls, whatever noise says
    clip = nearest.clip * math.exp((limit - _AIM_BYTES - nearest.size) / slope)
    # So far out the rate is no straight line any more, and what counts is to come under the limit.
    return LARGEST_CLIP if clip > 0.8 * LARGEST_CLIP else max(clip, SMALLEST_CLIP)
