"""Coding of quantized matrices under a model that learns from the integers already coded.

A matrix is coded in groups of rows. The magnitude of an integer is predicted from those coded so
far in its column, and integers of about the same prediction share one adaptive histogram; there are
few of these, and groups grow, so that one call codes thousands of symbols. A row that resembles an
earlier one, as embeddings of related tokens or of tokens never seen do, is coded as its difference
from that row.

All matrices of a role are one stream, coded on one core: constriction keeps the interpreter lock,
and several threads were slower than one (docs/experiments/coding.md).
"""

from __future__ import annotations

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
from paramgolf.compress.scales import MAX_INTEGER

_SMALL_GROUP, _LARGE_GROUP, _GROWTH = 8, 128, 12
_GUIDE_ROWS = 512
_NUM_SPREADS = 32
_SPREAD_RATIO = 1.15
_PRIOR_ROWS = 6.0

# A row of level l differs from its reference by 2^(-l / 16) of its spread.
_NUM_LEVELS = 64
_LEVELS = np.arange(_NUM_LEVELS)
_SPREAD_OF_LEVEL = np.rint(256 * 2.0 ** (-_LEVELS / 16)) / 256
_WEIGHT_OF_LEVEL = np.rint(256 * np.sqrt(1 - 4.0 ** (-_LEVELS / 16))).astype(np.int32)
# Boundaries between spreads, relative to the mean; rounded, since powers differ between machines.
_BOUNDARIES = np.rint(4096 * _SPREAD_RATIO ** (np.arange(1, _NUM_SPREADS) - 20.0)) / 4096
_CENTERS = np.rint(4096 * _SPREAD_RATIO ** (np.arange(_NUM_SPREADS) - 19.5)) / 4096


def code_matrices(
    coder: Coder, shapes: Sequence[tuple[int, int]], known: Sequence[NDArray[np.int8]] | None = None
) -> list[NDArray[np.int8]]:
    """Code the matrices of one role, integers between -MAX_INTEGER and MAX_INTEGER.

    Args:
        coder: an `Encoder` or a `Decoder`.
        shapes: (rows, columns) of every matrix.
        known: the matrices to encode; None to decode.

    Returns:
        The matrices.

    Raises:
        ValueError: if a stream does not decode to matrices of these shapes.
    """
    largest = None
    if known is not None:
        magnitudes = [max(int(matrix.max()), -int(matrix.min())) for matrix in known]
        largest = np.array([max(1, *magnitudes) - 1], np.int32)
    # Decoding searches the alphabet: a small one saves a fifth of its time.
    most = 1 + int(coder.code_below(np.array([MAX_INTEGER], np.int32), largest)[0])
    mean = _Mean(most / 5)
    integers = Histogram(_priors(mean.value, most), symmetric=True)
    levels = Histogram(1 / (1.0 + _LEVELS[None]))
    coded = []
    for number, (rows, columns) in enumerate(shapes):
        matrix = np.zeros((rows, columns), np.int8)
        truth = None if known is None else known[number]
        guide = None if truth is None else _Guide(truth)
        column_sums = np.zeros(columns)
        for begin, end in _groups(rows):
            references, chosen = _code_references(coder, levels, begin, end, guide)
            predicted = _predicted(matrix, references, chosen)
            of_columns = (column_sums + _PRIOR_ROWS * mean.value) / (
                (begin + _PRIOR_ROWS) * mean.value
            )
            contexts = _contexts(chosen, of_columns)
            integers.prior = _priors(mean.value, most)
            symbols = None
            if truth is not None:
                symbols = _wrapped(truth[begin:end] - predicted, most).astype(np.int32) + most
                symbols = symbols.reshape(-1, contexts.size)
            repeated = (end - begin) * columns // contexts.size
            found = code_in_contexts(coder, integers, contexts.ravel(), repeated, symbols)
            differences = found.reshape(predicted.shape).astype(np.int16) - np.int16(most)
            group = _wrapped(differences + predicted, most)
            matrix[begin:end] = group
            sums = np.abs(group).sum(axis=0, dtype=np.int64)
            column_sums += sums
            mean.add(float(sums.sum()), group.size)
        coded.append(matrix)
    return coded


def _contexts(chosen: Integers, of_columns: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the contexts of a group's integers, from the levels of its rows and its columns.

    One row stands for all if they have none but level 0.
    """
    spreads = _SPREAD_OF_LEVEL[chosen if chosen.any() else chosen[:1]]
    return np.searchsorted(_BOUNDARIES, spreads[:, None] * of_columns).astype(np.uint8)


def _predicted(
    matrix: NDArray[np.int8], references: Integers, chosen: Integers
) -> NDArray[np.int16]:
    """Return the prediction of a group's integers: a share of the rows' references."""
    predicted = np.zeros((len(chosen), matrix.shape[1]), np.int16)
    rows = np.flatnonzero(chosen)
    weights = _WEIGHT_OF_LEVEL[chosen[rows]][:, None]
    predicted[rows] = (matrix[references[rows]] * weights + 128) >> 8
    return predicted


def _priors(mean: float, most: int) -> NDArray[np.float64]:
    """Return the distribution of integers in each context: Student's t, 11 degrees of freedom."""
    deviations = 1.25 * mean * _CENTERS
    x = np.arange(-most, most + 1) / deviations[:, None]
    density = 1 / (1 + x * x / 11)
    density = density * density * density
    density = density * density
    return normalized(density)


def _groups(rows: int) -> list[tuple[int, int]]:
    """Return the first row of every group and the row after its last.

    Counts are updated after each group: groups have 1, 1, 2, 4, then 8 rows, and later a twelfth of
    the rows before them, which are enough to learn from.
    """
    groups, begin = [], 0
    while begin < rows:
        size = max(min(max(1, begin), _SMALL_GROUP), begin // _GROWTH)
        end = min(begin + min(size, _LARGE_GROUP), rows)
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


def _wrapped(values: NDArray[np.int16], most: int) -> NDArray[np.int16]:
    """Return the values modulo 2 most + 1, so that differences need no larger alphabet."""
    size = np.int16(2 * most + 1)
    return values - size * (values > most) + size * (values < -most)


# Rows predicted from earlier rows.


class _Guide:
    """The encoder's choice of a reference and a level for every row of a matrix."""

    def __init__(self, matrix: NDArray[np.int8]) -> None:
        rows, columns = matrix.shape
        self.levels = np.zeros(rows, np.int32)
        self.references = np.zeros(rows, np.int32)
        values = matrix.astype(np.float32)
        # Every column counts the same: similarity in a few large ones would save little.
        values /= np.maximum(np.sqrt((values**2).mean(axis=0)), 0.1)
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-3)
        # Rows before a row's group, which may be its reference.
        earlier = np.concatenate([np.full(end - begin, begin) for begin, end in _groups(rows)])
        for first in range(0, rows, _GUIDE_ROWS):
            block = slice(first, first + _GUIDE_ROWS)
            limits = earlier[block, None]
            similarity = values[block] @ values[: max(1, limits[-1, 0])].T
            similarity[np.arange(similarity.shape[1]) >= limits] = 0
            cosines = similarity.max(axis=1).clip(0, 0.999)
            bits = -np.log2(1 - cosines**2) / 2  # that an integer takes less
            worth_it = bits * columns > np.log2(limits[:, 0].clip(1)) + 8
            # By the definition of a level.
            self.levels[block] = np.where(worth_it, (16 * bits).round().clip(0, _NUM_LEVELS - 1), 0)
            self.references[block] = similarity.argmax(axis=1)


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
