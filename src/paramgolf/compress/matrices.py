"""Coding of quantized matrices: what one integer tells about the others is not sent twice.

A matrix is coded in groups of rows. The spread of an integer is expected from what its column held
so far, and integers of equal expectation share one adaptive histogram; there are few of these, so
that hundreds of symbols are coded in one call. A row that resembles an earlier one, as embeddings
of related or of never seen tokens do, is coded as its difference from that row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paramgolf.compress.entropy import (
    Coder,
    Histogram,
    Integers,
    code_in_contexts,
    known_at,
    normalized,
)

_GROUP_ROWS = 8
_NUM_SPREADS = 32
_SPREAD_RATIO = 1.15
_PRIOR_ROWS = 8.0

# A row's level l says that its difference from its reference spreads 2^(-l / 16) as far as the row.
_NUM_LEVELS = 64
_LEVELS = np.arange(_NUM_LEVELS)
_SPREAD_OF_LEVEL = np.rint(256 * 2.0 ** (-_LEVELS / 16)) / 256
_WEIGHT_OF_LEVEL = np.rint(256 * np.sqrt(1 - 4.0 ** (-_LEVELS / 16))).astype(np.int32)
# Boundaries between spreads, relative to the mean; rounded, since powers differ between machines.
_BOUNDARIES = np.rint(4096 * _SPREAD_RATIO ** (np.arange(1, _NUM_SPREADS) - 20.0)) / 4096
_CENTERS = np.rint(4096 * _SPREAD_RATIO ** (np.arange(_NUM_SPREADS) - 19.5)) / 4096


def code_matrices(
    coder: Coder,
    shapes: Sequence[tuple[int, int]],
    most: int,
    known: Sequence[NDArray[np.int8]] | None = None,
) -> list[NDArray[np.int8]]:
    """Code matrices of one role with integers between -most and most.

    Args:
        coder: an `Encoder`, for matrices that are `known`, or a `Decoder`.
        shapes: (rows, columns) of every matrix.
        most: the largest integer.
        known: the matrices; None to decode.

    Raises:
        ValueError: if a stream does not decode to matrices of these shapes.
    """
    mean = _Mean(most / 20)
    integers = Histogram(_priors(mean.value, most), symmetric=True)
    levels = Histogram(1 / (1.0 + _LEVELS[None]))
    coded = []
    for number, (rows, columns) in enumerate(shapes):
        matrix = np.zeros((rows, columns), np.int32)
        truth = None if known is None else known[number].astype(np.int32)
        guide = None if truth is None else _Guide(truth)
        column_sums = np.zeros(columns)
        for begin, end in _groups(rows):
            references, chosen = _code_references(coder, levels, begin, end, guide)
            weights = _WEIGHT_OF_LEVEL[chosen][:, None]
            predicted = (matrix[references] * weights + 128) >> 8
            of_columns = (column_sums + _PRIOR_ROWS * mean.value) / (
                (begin + _PRIOR_ROWS) * mean.value
            )
            spreads = _SPREAD_OF_LEVEL[chosen]
            contexts = np.searchsorted(_BOUNDARIES, spreads[:, None] * of_columns)
            integers.prior = _priors(mean.value, most)
            symbols = None
            if truth is not None:
                symbols = _wrapped(truth[begin:end] - predicted, most).ravel() + most
            found = code_in_contexts(coder, integers, contexts.ravel(), symbols)
            differences = found.reshape(contexts.shape) - most
            matrix[begin:end] = _wrapped(differences + predicted, most)
            magnitudes = np.abs(matrix[begin:end])
            column_sums += magnitudes.sum(axis=0)
            mean.add(float(magnitudes.sum()), magnitudes.size)
        coded.append(matrix.astype(np.int8))
    return coded


def _priors(mean: float, most: int) -> NDArray[np.float64]:
    """Distributions of integers by their expected spread: Student's t, 11 degrees of freedom."""
    deviations = 1.25 * mean * _CENTERS
    x = np.arange(-most, most + 1) / deviations[:, None]
    density = 1 / (1 + x * x / 11)
    density = density * density * density
    density = density * density
    return normalized(density)


def _groups(rows: int) -> list[tuple[int, int]]:
    """First and last + 1 row of every group: 1, 1, 2, 4 and then 8 rows.

    Whatever a group teaches serves the next; so the first ones, which know least, are small.
    """
    groups, begin = [], 0
    while begin < rows:
        end = min(begin + min(max(1, begin), _GROUP_ROWS), rows)
        groups.append((begin, end))
        begin = end
    return groups


class _Mean:
    """Mean magnitude of all integers so far."""

    def __init__(self, guess: float) -> None:
        self._sum, self._count = 10 * guess, 10.0
        self.value = guess

    def add(self, total: float, count: int) -> None:
        self._sum += total
        self._count += count
        # Of a role that is all zeros, too.
        self.value = max(self._sum / self._count, 1e-3)


def _wrapped(values: Integers, most: int) -> Integers:
    """Modulo 2 most + 1, into -most .. most: a difference takes no larger alphabet."""
    return (values + most) % (2 * most + 1) - most


# Rows that resemble earlier rows.


class _Guide:
    """The encoder's choice of a reference and a level for every row of a matrix."""

    def __init__(self, matrix: Integers) -> None:
        rows, columns = matrix.shape
        self.levels = np.zeros(rows, np.int32)
        self.references = np.zeros(rows, np.int32)
        values = matrix.astype(np.float32)
        # Every column counts the same: likeness in a few large ones would save little.
        values /= np.maximum(np.sqrt((values**2).mean(axis=0)), 0.1)
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-3)
        for begin, end in _groups(rows)[1:]:
            likeness = values[begin:end] @ values[:begin].T
            best = likeness.argmax(axis=1)
            cosines = np.clip(likeness[np.arange(len(best)), best], 0, 0.999)
            # 16 log2(1 / sqrt(1 - cos^2)): what a level means.
            chosen = np.minimum(np.rint(-8 * np.log2(1 - cosines**2)), _NUM_LEVELS - 1)
            saved_bits = chosen / 16 * columns
            worth_it = saved_bits > math.log2(begin) + 8
            self.levels[begin:end] = np.where(worth_it, chosen, 0)
            self.references[begin:end] = best


def _code_references(
    coder: Coder, levels: Histogram, begin: int, end: int, guide: _Guide | None
) -> tuple[Integers, Integers]:
    """Which earlier row each of the rows begin .. end - 1 resembles, and its level; 0: none."""
    references = np.zeros(end - begin, np.int32)
    if begin == 0:
        return references, references
    group = slice(begin, end)
    known_levels, known_references = (
        (None, None) if guide is None else (guide.levels[group], guide.references[group])
    )
    found = coder.code(levels.probabilities(0), end - begin, known_levels)
    levels.add(0, found)
    rows = np.flatnonzero(found)
    limits = np.full(len(rows), begin, np.int32)
    references[rows] = coder.code_below(limits, known_at(known_references, rows))
    return references, found
