"""How many bits dependent quantization could save under GPTQ, on Gaussian weights.

Two quantizers with the same bin width: one has the multiples of a bin, the other zero and the
half-way points. Which one a weight has follows from the parities of the integers above it in its
column, through a machine of 4 states (the one of VVC: Schwarz et al., "Quantization and entropy
coding in the Versatile Video Coding standard", 2021; on networks: Haase et al. 2020). The search
is Viterbi's, down the rows of a column; errors are fed forward to later columns as GPTQ does. The
cost of an integer is its squared error and `rate` times its bits, by the distribution of the pass
before.

Bits are the entropy of the integers given the quantizer ("bits"), and without knowing it ("blind").
The gap is to the rate-distortion bound of a Gaussian source at equal error, 1/2 log2(1 / D).

Cost: a minute and a half on one core. Expected: docs/experiments/trellis-simulation.md.

    python scripts/trellis_simulation.py
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

NEXT_STATE = {1: np.array([[0, 0]]), 4: np.array([[0, 2], [2, 0], [1, 3], [3, 1]])}
"""By state and parity of the integer. The second half of the states has the second quantizer."""
LARGEST = 40
PASSES = 4
"""Of which each has the distribution of integers that the one before found."""


class Found(NamedTuple):
    """What one pass of GPTQ found."""

    bits: float
    blind: float
    error: float
    """Mean squared error of a weight of variance 1."""
    cost: Floats
    """(2, 2 LARGEST + 1): bits of every integer, by quantizer."""


def value(integers: Ints, second: NDArray[np.bool_] | bool) -> Floats:
    """Return what integers stand for, in bins."""
    return integers - 0.5 * np.sign(integers) * second


def search(x_MR: Floats, states: int, rate: float, cost: Floats) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the best path of integers down the rows of M columns, and their quantizers."""
    table, (count, rows) = NEXT_STATE[states], x_MR.shape
    second_S = np.arange(states) >= max(1, states // 2)
    total_MS = np.full((count, states), math.inf)
    total_MS[:, 0] = 0
    came_from = np.zeros((rows, count, states), np.int64)
    chosen = np.zeros((rows, count, states), np.int64)
    every = np.arange(count)[:, None]
    for row in range(rows):
        x_MS1 = x_MR[:, row, None, None]
        nearest = np.rint(x_MS1 + 0.5 * np.sign(x_MS1) * second_S[:, None])
        near_MSC = np.clip(nearest + np.array([0, -1, 1, -2, 2]), -LARGEST, LARGEST)
        near_MSC = np.concatenate([near_MSC, np.zeros_like(nearest)], 2).astype(np.int64)
        kind = np.broadcast_to(second_S[:, None], near_MSC.shape)
        worse = (x_MS1 - value(near_MSC, kind)) ** 2 + rate * cost[kind * 1, near_MSC + LARGEST]
        worse += total_MS[:, :, None]
        after = np.full((count, states), math.inf)
        for state in range(states):
            for parity in range(2):
                of_parity = np.where(near_MSC[:, state] % 2 == parity, worse[:, state], math.inf)
                best = of_parity.argmin(1)[:, None]
                found = np.take_along_axis(of_parity, best, 1)[:, 0]
                to = table[state, parity]
                better = found < after[:, to]
                after[better, to] = found[better]
                integer = np.take_along_axis(near_MSC[:, state], best, 1)[:, 0]
                came_from[row, better, to] = state
                chosen[row, better, to] = integer[better]
        total_MS = after
    state = total_MS.argmin(1)[:, None]
    integers, second = np.zeros(x_MR.shape, np.int64), np.zeros(x_MR.shape, np.bool_)
    for row in reversed(range(rows)):
        integers[:, row] = chosen[row, every, state][:, 0]
        state = came_from[row, every, state]
        second[:, row] = second_S[state[:, 0]]
    return integers, second


def quantize(
    weights_MRC: Floats, factor_CC: Floats, states: int, bin_width: float, rate: float, cost: Floats
) -> Found:
    """Quantize column by column; `factor_CC`: upper Cholesky factor of the inverse Hessian."""
    weights, columns = weights_MRC.copy(), weights_MRC.shape[2]
    counts, squares = np.zeros((2, 2 * LARGEST + 1)), 0.0
    for column in range(columns):
        pivot = factor_CC[column, column]
        in_bins = weights[:, :, column] / (bin_width * pivot)
        integers, second = search(in_bins, states, rate, cost)
        error = (in_bins - value(integers, second)) * bin_width
        squares += float((error**2).mean()) / columns
        weights[:, :, column:] -= error[:, :, None] * factor_CC[column, column:]
        for kind in range(2):
            of_kind = integers[second == bool(kind)] + LARGEST
            counts[kind] += np.bincount(of_kind, minlength=2 * LARGEST + 1)
    shares = (counts + 0.5) / (counts + 0.5).sum(1, keepdims=True)
    return Found(_entropy(counts), _entropy(counts.sum(0)[None]), squares, -np.log2(shares))


def _entropy(counts: Floats) -> float:
    """Return the mean bits of an integer whose row is known."""
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    return float(-(counts * np.log2(np.where(shares > 0, shares, 1))).sum() / counts.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--matrices", type=int, default=32)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--columns", type=int, default=32)
    sizes = parser.parse_args()
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((4 * sizes.columns, sizes.columns))
    hessian = inputs.T @ inputs / len(inputs)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    # In units of the pivots, so that one bound holds for all columns.
    shape = (sizes.matrices, sizes.rows, sizes.columns)
    weights = rng.standard_normal(shape) * np.diag(factor)
    print("| states | rate | bin width | bits | blind | error | gap, bits |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for states in NEXT_STATE:
        for share in (0.0, 0.5, 1.0):  # of 2 ln 2 / 12, the slope of fine scalar quantization
            for bin_width in (0.33, 0.39, 0.46):
                cost = np.zeros((2, 2 * LARGEST + 1))
                rate = share * 2 * math.log(2) / 12
                found = quantize(weights, factor, states, bin_width, rate, cost)
                for _ in range(PASSES - 1 if share else 0):
                    found = quantize(weights, factor, states, bin_width, rate, found.cost)
                gap = found.bits + 0.5 * math.log2(found.error)
                figures = f"{found.bits:.4f} | {found.blind:.4f} | {found.error:.6f} | {gap:.4f}"
                print(f"| {states} | {rate:.3f} | {bin_width} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
