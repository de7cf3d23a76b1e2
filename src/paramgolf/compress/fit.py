"""Bin widths that fill a byte budget, and how the bytes are divided among the matrices.

The bits of a matrix follow from how far its columns spread, counted in bins; the divergence that
quantizing it causes grows with the square of its bin width. Bits are well spent where one more
would gain the same in every matrix: when all matrices cause the same divergence per weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from paramgolf.compress.scales import nearest_scales

SLACK_BYTES = 2000
"""A size that leaves less of its target than this fills it."""
_FIRST_SOLVES, _FIRST_SLACK_BYTES = 2, 1700  # stricter, while another solve is worth its time
AIM_BYTES = 800
"""Solves aim this far below the target, for the error of the predicted size."""
MAX_SOLVES = 10
"""After which any size within the target is accepted; two or three nearly always fill it."""
MIN_BIN_WIDTH, MAX_BIN_WIDTH = 0.02, 2.0
"""In standard deviations of a row. Narrower bins clip integers, wider ones leave hardly any."""
_MAX_BALANCE = 8.0  # of a bin width over the one that all matrices would have in common
_MAX_LOG_FACTOR = 8.0  # every bin width is then at its minimum or maximum

BinWidths = Mapping[str, float]
"""By name of the matrix, in standard deviations of a row."""


class Spread(NamedTuple):
    """How far the weights of one matrix spread, in units of its columns' scales."""

    rows: Tensor
    """Standard deviations of the rows that are not all zero, (R,) float64."""
    columns: Tensor
    """Root mean squares of the columns, in units of the rows' deviations, (C,) float64."""


def balanced(
    bin_widths: BinWidths, divergences: Mapping[str, float], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Return bin widths with which all matrices cause the same divergence per weight.

    Args:
        bin_widths: those with which the divergences were measured.
        divergences: nats per token that quantizing each matrix costs, by name.
        sizes: weights of each matrix, by name.
    """
    mean = sum(divergences.values()) / sum(sizes.values())
    factors = {}
    for name, size in sizes.items():
        factor = math.sqrt(mean * size / max(divergences[name], 1e-12))
        factors[name] = min(max(factor, 1 / _MAX_BALANCE), _MAX_BALANCE)
    return {name: width * factors[name] for name, width in bin_widths.items()}


def scaled(bin_widths: BinWidths, log_factor: float) -> dict[str, float]:
    """Return all bin widths times exp(log_factor), each between its minimum and maximum."""
    factor = math.exp(log_factor)
    return {
        name: min(max(width * factor, MIN_BIN_WIDTH), MAX_BIN_WIDTH)
        for name, width in bin_widths.items()
    }


class RateModel:
    """Predicts the size of an artifact from its bin widths, calibrated on the latest solve.

    Attributes:
        solves: number learned.
    """

    def __init__(self, spreads: Mapping[str, Spread]) -> None:
        """Take the spread of every matrix."""
        self.solves = 0
        self._offset = 0.0
        self._names = list(spreads)
        rows, columns = zip(*spreads.values(), strict=True)
        numbers = torch.arange(len(spreads))
        self._num_rows = torch.tensor([len(part) for part in rows])
        self._rows, self._of_rows = torch.cat(rows), numbers.repeat_interleave(self._num_rows)
        num_columns = torch.tensor([len(part) for part in columns])
        self._columns, self._of_columns = torch.cat(columns), numbers.repeat_interleave(num_columns)

    def learn(self, bin_widths: BinWidths, size: int) -> None:
        """Calibrate on the bytes that a solve with these bin widths took."""
        self.solves += 1
        self._offset = size - self._theory(bin_widths)

    def size(self, bin_widths: BinWidths) -> float:
        """Return the predicted bytes, exact for the bin widths learned last."""
        return self._offset + self._theory(bin_widths)

    def log_factor(self, bin_widths: BinWidths, limit: float) -> float:
        """Return the smallest logarithm of a factor on the bin widths predicted to keep `limit`.

        It is at an end of its range if no factor comes close to the limit.
        """
        low, high = -_MAX_LOG_FACTOR, _MAX_LOG_FACTOR
        for _ in range(30):
            middle = (low + high) / 2
            if self.size(scaled(bin_widths, middle)) > limit:
                low = middle
            else:
                high = middle
        return high

    def _theory(self, bin_widths: BinWidths) -> float:
        """Return the bytes of independent normal variables, coded column by column.

        Takes the rows' scales on their grid: a small change of a bin width moves some rows and
        not others, an effect of a tenth of what a correction has to make up for.
        """
        widths = torch.tensor([bin_widths[name] for name in self._names], dtype=torch.float64)
        scales = nearest_scales(self._rows * widths[self._of_rows]).double()
        logs = torch.zeros_like(widths).index_add(0, self._of_rows, (scales / self._rows).log())
        means = torch.exp(logs / self._num_rows.clamp(min=1))
        # Rounding adds a twelfth (Sheppard). The entropy is right for narrow bins.
        variances = (self._columns / means[self._of_columns]).square() + 1 / 12
        bits = (2 * math.pi * math.e * variances).log1p() / (2 * math.log(2))
        return float((bits * self._num_rows[self._of_columns]).sum()) / 8


class Search:
    """Searches the factor on given bin widths with which the artifact fills a target.

    Each correction is predicted by the rate model. Where the prediction contradicts a known size,
    the search bisects between the widest bins known to be over the target and the narrowest known
    to be under it.

    Attributes:
        target: bytes.
        best: the largest size so far within the target; None if there is none.
    """

    def __init__(self, bin_widths: BinWidths, rate: RateModel, target: int) -> None:
        """Start from bin widths whose proportion is kept.

        Either `rate` has learned a solve with others, or the first `add` is of these.
        """
        self.target = target
        self.best: int | None = None
        self._proportion, self._rate = bin_widths, rate
        self._tried: list[BinWidths] = []
        self._log_factor = 0.0  # of the latest solve
        self._over, self._under = -math.inf, math.inf

    def add(self, bin_widths: BinWidths, size: int) -> None:
        """Record the size of a solve with `next_widths`."""
        self._rate.learn(bin_widths, size)
        self._tried.append(bin_widths)
        if size > self.target:
            self._over = max(self._over, self._log_factor)
        else:
            self._under = min(self._under, self._log_factor)
            self.best = max(size, self.best or 0)

    def next_widths(self) -> dict[str, float] | None:
        """Return the bin widths to try next, or None at the end of the search.

        At the end a solve was within the target, or the widest bins were tried and were not.
        """
        log_factors = []
        if not self._filled() and self._rate.solves < MAX_SOLVES:
            log_factors.append(self._predicted())
        if self.best is None:
            log_factors.append(_MAX_LOG_FACTOR)
        for log_factor in log_factors:
            bin_widths = scaled(self._proportion, log_factor)
            if bin_widths not in self._tried:
                self._log_factor = log_factor
                return bin_widths
        return None

    def _filled(self) -> bool:
        slack = _FIRST_SLACK_BYTES if self._rate.solves <= _FIRST_SOLVES else SLACK_BYTES
        return self.best is not None and self.target - self.best < slack

    def _predicted(self) -> float:
        predicted = self._rate.log_factor(self._proportion, self.target - AIM_BYTES)
        nothing_better = predicted == self._log_factor
        if nothing_better or self._over < predicted < self._under:
            return predicted
        return (max(self._over, -_MAX_LOG_FACTOR) + min(self._under, _MAX_LOG_FACTOR)) / 2
