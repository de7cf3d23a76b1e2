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
    coder: Coder, shapes: Sequence[Sequence[int]], known: Sequence[NDArray[np.int8]] | None = None
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
    total, count = 2.0 * most, 10.0
    integers = Histogram(_priors(total / count, most), symmetric=True)
    levels = Histogram(1 / (1.0 + _LEVELS[None]))
    coded = []
    for number, (rows, columns) in enumerate(shapes):
        matrix = np.zeros((rows, columns), np.int8)
        truth = None if known is None else known[number]
        guide = None if truth is None else _guide(truth)
        column_sums = np.zeros(columns)
        for begin, end in _groups(rows):
            references, chosen = _code_references(coder, levels, begin, end, guide)
            similar = np.flatnonzero(chosen)
            predicted = np.zeros((end - begin, columns), np.int16)
            weights = _WEIGHT_OF_LEVEL[chosen[similar], None]
            predicted[similar] = (matrix[references[similar]] * weights + 128) >> 8
            # Above 0 even if all matrices of the role are zero.
            mean = max(total / count, 1e-3)
            of_columns = (column_sums + _PRIOR_ROWS * mean) / ((begin + _PRIOR_ROWS) * mean)
            # One row of contexts stands for all if no row has a reference.
            spreads = _SPREAD_OF_LEVEL[chosen if len(similar) else chosen[:1], None]
            contexts = np.searchsorted(_BOUNDARIES, spreads * of_columns).astype(np.uint8)
            integers.prior = _priors(mean, most)
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
            total += float(sums.sum())
            count += group.size
        coded.append(matrix)
    return coded


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
    the rows before them, which are enough to learn from, but at most 128.
    """
    groups, begin = [], 0
    while begin < rows:
        end = min(begin + max(min(max(1, begin), 8), min(begin // 12, 128)), rows)
        groups.append((begin, end))
        begin = end
    return groups


def _wrapped(values: NDArray[np.int16], most: int) -> NDArray[np.int16]:
    """Return the values modulo 2 most + 1, so that differences need no larger alphabet."""
    size = np.int16(2 * most + 1)
    return values - size * (values > most) + size * (values < -most)


# Rows predicted from earlier rows.


def _guide(matrix: NDArray[np.int8]) -> tuple[Integers, Integers]:
    """Return the encoder's choice of a level and a reference for every row of a matrix."""
    rows, columns = matrix.shape
    values = matrix.astype(np.float32)
    # Every column counts the same: similarity in a few large ones would save little.
    values /= np.maximum(np.sqrt((values**2).mean(axis=0)), 0.1)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-3)
    # Rows before a row's group, which may be its reference.
    earlier = np.concatenate([np.full(end - begin, begin) for begin, end in _groups(rows)])
    levels, references = np.zeros((2, rows), np.int32)
    for first in range(0, rows, _GUIDE_ROWS):
        block = slice(first, first + _GUIDE_ROWS)
        limits = earlier[block]
        similarity = values[block] @ values[: block.stop].T
        similarity[np.arange(rows)[: block.stop] >= limits[:, None]] = 0
        cosines = similarity.max(axis=1).clip(max=0.999)
        bits = -np.log2(1 - cosines**2) / 2  # that an integer takes less
        worth_it = bits * columns > np.log2(limits.clip(1)) + 8
        # By the definition of a level.
        levels[block] = np.where(worth_it, (16 * bits).round().clip(max=_NUM_LEVELS - 1), 0)
        references[block] = similarity.argmax(axis=1)
    return levels, references


def _code_references(
    coder: Coder,
    levels: Histogram,
    begin: int,
    end: int,
    guide: tuple[Integers, Integers] | None,
) -> tuple[Integers, Integers]:
    """Code the reference and the level of the rows begin .. end - 1; level 0: no reference."""
    references = np.zeros(end - begin, np.int32)
    if begin == 0:
        return references, references
    known_levels, known_references = guide or (None, None)
    group = slice(begin, end)
    found = coder.code(levels.probabilities(0), end - begin, known_at(known_levels, group))
    levels.add(0, found)
    rows = np.flatnonzero(found)
    limits = np.full(len(rows), begin, np.int32)
    references[rows] = coder.code_below(limits, known_at(known_references, begin + rows))
    return references, found
