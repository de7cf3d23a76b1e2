"""How the bytes are split over the matrices, and steps that fill a byte budget.

A matrix's bits come from how far its columns spread over their steps; the divergence that a matrix
causes grows with the square of its step. Bits are well spent where one more would gain the same
everywhere: when all matrices cause the same divergence a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

MOST_SOLVES = 3
SLACK_BYTES = 1700
AIM_BYTES = 800
"""Below the limit, for the error that the last solve may make."""
SMALLEST_STEP, LARGEST_STEP = 0.02, 2.0
"""In standard deviations of a row. Below, integers are cut off at their largest; above, hardly
anything is left."""
_LARGEST_FACTOR = 8.0  # of a step over what it would be if all matrices had the same

Steps = Mapping[str, float]


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
        factors[name] = min(max(factor, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)
    return {name: step * factors[name] for name, step in steps.items()}


class RateModel:
    """Bytes that matrices take with steps not tried yet, learned from those that were."""

    def __init__(self, spreads: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        """Know the matrices.

        Args:
            spreads: of every matrix, (C,) float64; see `Quantizer`.
            sizes: weights of each matrix.
        """
        self._spreads, self._sizes = spreads, sizes
        self._offset, self._slope = 0.0, 1.0
        self._last: tuple[float, float] | None = None

    def learn(self, steps: Steps, measured: float) -> None:
        """Take in the bytes of all matrices with some steps."""
        theory = max(self._theory(steps), 1.0)
        slope = measured / theory
        if self._last is not None and abs(theory / self._last[0] - 1) > 1e-4:
            secant = (measured - self._last[1]) / (theory - self._last[0])
            slope = min(max(secant, slope / 2), slope * 2)  # it rises, whatever noise says
        self._slope, self._offset = slope, measured - slope * theory
        self._last = theory, measured

    def of(self, steps: Steps) -> float:
        """Expected bytes, right for the steps learned last."""
        return self._offset + self._slope * self._theory(steps)

    def _theory(self, steps: Steps) -> float:
        """Bytes of independent normal numbers, each column coded by itself."""
        bits = 0.0
        for name, spreads in self._spreads.items():
            # Entropy of a rounded normal variable: right for fine steps, and 0 for wide ones.
            variances = (spreads / steps[name]).square()
            column_bits = (2 * math.pi * math.e * variances).log1p() / (2 * math.log(2))
            bits += self._sizes[name] * float(column_bits.mean())
        return bits / 8


def scaled(steps: Steps, factor: float) -> dict[str, float]:
    """All steps times a factor, within their limits."""
    return {
        name: min(max(step * factor, SMALLEST_STEP), LARGEST_STEP) for name, step in steps.items()
    }


def fill(steps: Steps, bytes_of: Callable[[Steps], float], limit: float) -> dict[str, float]:
    """The steps in the proportion given, or as near to it as limits allow, that fill `limit`.

    Args:
        steps: the proportion.
        bytes_of: falls as steps grow.
        limit: bytes to come close to from below; far off, the widest or finest steps.
    """
    low, high = -8.0, 8.0  # of the factor's logarithm
    for _ in range(60):
        middle = (low + high) / 2
        if bytes_of(scaled(steps, math.exp(middle))) > limit:
            low = middle
        else:
            high = middle
    return scaled(steps, math.exp(high))


def fills(size: int, limit: int) -> bool:
    """Whether a size is under the limit, by less than `SLACK_BYTES`."""
    return 0 <= limit - size < SLACK_BYTES
