"""Coding of quantized matrices under a model that learns from the integers already coded.

A matrix is coded in groups of rows. The magnitude of an integer is predicted from those coded so
far in its column, and integers of about the same prediction share one adaptive histogram; there are
few of these, so that one call codes hundreds of symbols. A row that resembles an earlier one, as
embeddings of related tokens or of tokens never seen do, is coded as its difference from that row.
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

# A row of level l differs from its reference by 2^(-l / 16) of its spread.
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
    max_integer: int,
    known: Sequence[NDArray[np.int8]] | None = None,
) -> list[NDArray[np.int8]]:
    """Code the matrices of one role, integers between -max_integer and max_integer.

    Args:
        coder: an `Encoder` or a `Decoder`.
        shapes: (rows, columns) of every matrix.
        max_integer: the largest magnitude.
        known: the matrices to encode; None to decode.

    Returns:
        The matrices.

    Raises:
        ValueError: if a stream does not decode to matrices of these shapes.
    """
    mean = _Mean(max_integer / 20)
    integers = Histogram(_priors(mean.value, max_integer), symmetric=True)
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
            integers.prior = _priors(mean.value, max_integer)
            symbols = None
            if truth is not None:
                symbols = _wrapped(truth[begin:end] - predicted, max_integer).ravel() + max_integer
            found = code_in_contexts(coder, integers, contexts.ravel(), symbols)
            differences = found.reshape(contexts.shape) - max_integer
            matrix[begin:end] = _wrapped(differences + predicted, max_integer)
            magnitudes = np.abs(matrix[begin:end])
            column_sums += magnitudes.sum(axis=0)
            mean.add(float(magnitudes.sum()), magnitudes.size)
        coded.append(matrix.astype(np.int8))
    return coded


def _priors(mean: float, max_integer: int) -> NDArray[np.float64]:
    """Return the distribution of integers in each context: Student's t, 11 degrees of freedom."""
    deviations = 1.25 * mean * _CENTERS
    x = np.arange(-max_integer, max_integer + 1) / deviations[:, None]
    density = 1 / (1 + x * x / 11)
    density = density * density * density
    density = density * density
    return normalized(density)


def _groups(rows: int) -> list[tuple[int, int]]:
    """Return the first row of every group and the row after its last: 1, 1, 2, 4, then 8 rows.

    Counts are updated after each group; the first groups, with the fewest counts, are small.
    """
    groups, begin = [], 0
    while begin < rows:
        end = min(begin + min(max(1, begin), _GROUP_ROWS), rows)
        groups.append((begin, end))
        begin = end
    return groups


class _Mean:
    """The mean magnitude of all integers coded so far."""

    def __init__(self, guess: float) -> None:
        self._sum, self._count = 10 * guess, 10.0
        self.value = guess

    def add(self, total: float, count: int) -> None:
        self._sum += total
        self._count += count
        # Above 0 even if all matrices of the role are zero.
        self.value = max(self._sum / self._count, 1e-3)


def _wrapped(values: Integers, max_integer: int) -> Integers:
    """Return the values modulo 2 max_integer + 1, so that differences need no larger alphabet."""
    return (values + max_integer) % (2 * max_integer + 1) - max_integer


# Rows predicted from earlier rows.


class _Guide:
    """The encoder's choice of a reference and a level for every row of a matrix."""

    def __init__(self, matrix: Integers) -> None:
        rows, columns = matrix.shape
        self.levels = np.zeros(rows, np.int32)
        self.references = np.zeros(rows, np.int32)
        values = matrix.astype(np.float32)
        # Every column counts the same: similarity in a few large ones would save little.
        values /= np.maximum(np.sqrt((values**2).mean(axis=0)), 0.1)
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-3)
        for begin, end in _groups(rows)[1:]:
            similarity = values[begin:end] @ values[:begin].T
            best = similarity.argmax(axis=1)
            cosines = np.clip(similarity[np.arange(len(best)), best], 0, 0.999)
            # 16 log2(1 / sqrt(1 - cos^2)), the definition of a level.
            chosen = np.minimum(np.rint(-8 * np.log2(1 - cosines**2)), _NUM_LEVELS - 1)
            saved_bits = chosen / 16 * columns
            worth_it = saved_bits > math.log2(begin) + 8
            self.levels[begin:end] = np.where(worth_it, chosen, 0)
            self.references[begin:end] = best


def _code_references(
    coder: Coder, levels: Histogram, begin: int, end: int, guide: _Guide | None
) -> tuple[Integers, Integers]:
    """Code the reference and the level of the rows begin .. end - 1; level 0: no reference."""
    references = np.zeros(end - begin, np.int32)
    if begin == 0:
        return references, references
    known_levels = known_references = None
    if guide is not None:
        known_levels, known_references = guide.levels[begin:end], guide.references[begin:end]
    found = coder.code(levels.probabilities(0), end - begin, known_levels)
    levels.add(0, found)
    rows = np.flatnonzero(found)
    limits = np.full(len(rows), begin, np.int32)
    references[rows] = coder.code_below(limits, known_at(known_references, rows))
    return references, found
