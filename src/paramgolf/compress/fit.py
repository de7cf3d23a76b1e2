"""How the bytes are split over the matrices, and steps that fill a byte budget.

A matrix's bits come from how far its columns spread over their steps; the divergence that a matrix
causes grows with the square of its step. Bits are well spent where one more would gain the same
everywhere: when all matrices cause the same divergence a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from paramgolf.compress.scales import nearest_scales

MAX_SOLVES = 3
SLACK_BYTES = 1700
AIM_BYTES = 800
"""Below the limit, for the error that the last solve may make."""
MIN_STEP, MAX_STEP = 0.02, 2.0
"""In standard deviations of a row. Below, integers are cut off at their largest; above, hardly
anything is left."""
_MAX_FACTOR = 8.0  # of a step over what it would be if all matrices had the same

Steps = Mapping[str, float]


class Spread(NamedTuple):
    """How far the weights of one matrix spread, in units of its columns' scales."""

    rows: Tensor
    """Standard deviations of the rows that are not all zero, (R,) float64."""
    columns: Tensor
    """Root mean squares of the columns, counted in the rows' deviations, (C,) float64."""


def balanced(steps: Steps, divergences: Steps, sizes: Mapping[str, int]) -> dict[str, float]:
    """Steps with which all matrices cause the same divergence a weight.

    Args:
        steps: those with which the divergences were measured, by name.
        divergences: nats a token that quantizing each matrix causes.
        sizes: weights of each matrix.
    """
    mean = sum(divergences.values()) / sum(sizes.values())
    factors = {}
    for name, size in sizes.items():
        factor = math.sqrt(mean * size / max(divergences[name], 1e-12))
        factors[name] = min(max(factor, 1 / _MAX_FACTOR), _MAX_FACTOR)
    return {name: step * factors[name] for name, step in steps.items()}


class RateModel:
    """Bytes that matrices take with steps not tried yet, learned from those tried last."""

    def __init__(self, spreads: Mapping[str, Spread]) -> None:
        """Know how every matrix spreads."""
        self._spreads = spreads
        self._offset = 0.0

    def learn(self, steps: Steps, measured: float) -> None:
        """Take in the bytes of all matrices with some steps."""
        self._offset = measured - self._theory(steps)

    def of(self, steps: Steps) -> float:
        """Expected bytes, right for the steps learned last."""
        return self._offset + self._theory(steps)

    def _theory(self, steps: Steps) -> float:
        """Bytes of independent normal numbers, each column coded by itself.

        With the rows' scales as they are on their grid: a change of a step within a notch moves
        some rows and not others, which is a tenth of what the last solve corrects.
        """
        bits = 0.0
        for name, (rows, columns) in self._spreads.items():
            if not len(rows):
                continue
            scales = nearest_scales(rows * steps[name]).double()
            step = torch.exp((scales / rows).log().mean())
            # Rounding adds a twelfth (Sheppard). The entropy is right for fine steps.
            variances = (columns / step).square() + 1 / 12
            column_bits = (2 * math.pi * math.e * variances).log1p() / (2 * math.log(2))
            bits += len(rows) * float(column_bits.sum())
        return bits / 8


def scaled(steps: Steps, factor: float) -> dict[str, float]:
    """All steps times a factor, within their limits."""
    return {name: min(max(step * factor, MIN_STEP), MAX_STEP) for name, step in steps.items()}


def fill(steps: Steps, bytes_of: Callable[[Steps], float], limit: float) -> dict[str, float]:
    """The steps in the proportion given, or as near to it as limits allow, that fill `limit`.

    Args:
        steps: the proportion.
        bytes_of: falls as steps grow.
        limit: bytes to come close to from below; far off, the widest or finest steps.
    """
    low, high = -8.0, 8.0  # of the factor's logarithm
    for _ in range(30):
        middle = (low + high) / 2
        if bytes_of(scaled(steps, math.exp(middle))) > limit:
            low = middle
        else:
            high = middle
    return scaled(steps, math.exp(high))


def fills(size: int, limit: int) -> bool:
    """Whether a size is under the limit, by less than `SLACK_BYTES`."""
    return 0 <= limit - size < SLACK_BYTES
