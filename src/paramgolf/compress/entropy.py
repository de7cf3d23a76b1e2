"""Range coding of integers under adaptive models: the two sides of a stream, and simple parts.

constriction codes; what it is told to expect is computed from integers by additions,
multiplications and divisions in float64, which IEEE 754 rounds the same on every machine.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]
from numpy.typing import NDArray

Integers = NDArray[np.int32]

_Categorical = stream.model.Categorical
_Uniform = stream.model.Uniform

NOTHING: Integers = np.zeros(0, np.int32)
"""Stands for symbols that a decoder does not know."""

_PRIOR_COUNT = 24.0
_MIN_COUNT = 1e-3  # no symbol is impossible


class Coder(Protocol):
    """One side of a coded stream: it knows the symbols, or it finds them."""

    def code(self, probabilities: NDArray[np.float64], count: int, known: Integers) -> Integers:
        """Code `count` symbols of one distribution; gives them."""
        ...

    def code_below(self, limits: Integers, known: Integers) -> Integers:
        """Code numbers that are equally likely between 0 and each limit, exclusive."""
        ...


class Encoder:
    """Writes symbols, and adds up what they would take at best."""

    def __init__(self) -> None:
        self._coder = stream.queue.RangeEncoder()
        self.ideal_bits = 0.0

    def code(self, probabilities: NDArray[np.float64], count: int, known: Integers) -> Integers:
        """Write `known`."""
        shares = probabilities / probabilities.sum()
        self.ideal_bits -= float(np.log2(shares)[known].sum())
        self._coder.encode(known, _Categorical(probabilities, perfect=False))
        return known

    def code_below(self, limits: Integers, known: Integers) -> Integers:
        """Write `known`."""
        for limit, number in zip(limits.tolist(), known.tolist(), strict=True):
            self._coder.encode(np.array([number], np.int32), _Uniform(max(2, limit)))
            self.ideal_bits += math.log2(max(2, limit))
        return known

    def content(self) -> bytes:
        """The stream."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads what an `Encoder` wrote; any bytes give symbols in range, or a ValueError."""

    def __init__(self, content: bytes) -> None:
        if len(content) % 4:
            raise ValueError("a coded stream of a length that is no multiple of 4")
        self._coder = stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))

    def code(self, probabilities: NDArray[np.float64], count: int, known: Integers) -> Integers:
        """Read `count` symbols."""
        return self._read(_Categorical(probabilities, perfect=False), count)

    def code_below(self, limits: Integers, known: Integers) -> Integers:
        """Read a number for each limit."""
        numbers = [self._read(_Uniform(max(2, limit)), 1)[0] for limit in limits.tolist()]
        return np.array(numbers, np.int32)

    def _read(self, model: object, count: int) -> Integers:
        try:
            return self._coder.decode(model, count)
        except AssertionError as error:
            raise ValueError("a damaged coded stream") from error

    def finish(self) -> None:
        """Raise a ValueError if there is more than was read."""
        if not self._coder.maybe_exhausted():
            raise ValueError("a coded stream that is too long")


def normalized(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows that add up to 1; added up one after the other, as every machine does it."""
    return rows / np.cumsum(rows, axis=1)[:, -1:]


class Histogram:
    """Adaptive counts of the symbols 0 .. size - 1 in each of some contexts.

    Attributes:
        prior: (contexts, size) distributions that stand in for counts to come.
    """

    def __init__(self, prior: NDArray[np.float64], symmetric: bool = False) -> None:
        """Start with a prior, not normalised; symmetric ones also count a symbol's mirror image."""
        self._symmetric = symmetric
        self.prior = normalized(prior)
        self._counts: NDArray[np.float64] = np.zeros(prior.shape)

    def probabilities(self, context: int) -> NDArray[np.float64]:
        """Of a context's symbols, not normalised, positive."""
        return self._counts[context] + _PRIOR_COUNT * self.prior[context] + _MIN_COUNT

    def add(self, context: int, symbols: Integers) -> None:
        """Count symbols."""
        counts = np.bincount(symbols, minlength=self._counts.shape[1]).astype(np.float64)
        if self._symmetric:
            counts = (counts + counts[::-1]) / 2
        self._counts[context] += counts


def code_in_contexts(
    coder: Coder, histogram: Histogram, contexts: NDArray[np.integer[Any]], known: Integers
) -> Integers:
    """Code symbols in the order of their contexts, each context's with one distribution.

    Args:
        coder: either side.
        histogram: learns from the symbols, a context at a time.
        contexts: (N,) the context of every symbol.
        known: (N,) the symbols, or `NOTHING`.

    Returns:
        (N,) the symbols in their own order.
    """
    order = np.argsort(contexts, kind="stable")
    sizes = np.bincount(contexts)
    ordered = known[order] if len(known) else NOTHING
    found = np.empty(len(contexts), np.int32)
    begin = 0
    for context in np.flatnonzero(sizes).tolist():
        end = begin + int(sizes[context])
        part = coder.code(histogram.probabilities(context), end - begin, ordered[begin:end])
        histogram.add(context, part)
        found[begin:end] = part
        begin = end
    result = np.empty(len(contexts), np.int32)
    result[order] = found
    return result


# Scales: powers of 2^(1/8).

_SCALE_ALPHABET = 64
_ESCAPE = _SCALE_ALPHABET - 1
_SCALE_OFFSET = 256  # of the exponents, which are those of float16 times 8: -192 .. 128


class ScaleModel:
    """Exponents of row scales, which lie close together within a matrix."""

    def __init__(self) -> None:
        distance = np.abs(np.arange(_SCALE_ALPHABET) - _SCALE_ALPHABET // 2)
        self._near = Histogram(1 / (1.0 + distance[None]) ** 2)

    def code(self, coder: Coder, count: int, known: Integers) -> Integers:
        """Code a matrix's exponents: their median, and how far each is from it."""
        middle = int(np.median(known)) if len(known) else 0
        (middle,) = coder.code_below(_limits(1), np.array([middle + _SCALE_OFFSET], np.int32))
        symbols = known - (middle - _SCALE_OFFSET) + _SCALE_ALPHABET // 2
        symbols = np.where((symbols < 0) | (symbols >= _ESCAPE), _ESCAPE, symbols).astype(np.int32)
        parts = []
        for begin in range(0, count, _SCALE_ALPHABET):
            size = min(_SCALE_ALPHABET, count - begin)
            part = coder.code(self._near.probabilities(0), size, symbols[begin : begin + size])
            self._near.add(0, part)
            parts.append(part)
        found = np.concatenate(parts)
        far = np.flatnonzero(found == _ESCAPE)
        exponents = found - _SCALE_ALPHABET // 2 + (middle - _SCALE_OFFSET)
        escaped = known[far] + _SCALE_OFFSET if len(known) else NOTHING
        exponents[far] = coder.code_below(_limits(len(far)), escaped) - _SCALE_OFFSET
        return exponents


def _limits(count: int) -> Integers:
    return np.full(count, 2 * _SCALE_OFFSET, np.int32)


# Vectors: bfloat16.

_MANTISSA_BITS = 7
_VECTOR_GROUP = 64


class VectorModel:
    """bfloat16 numbers: sign and exponent, then the mantissa, whose use depends on these."""

    def __init__(self) -> None:
        self._heads = Histogram(np.ones((1, 1 << 9)))
        self._mantissas = Histogram(np.ones((1 << 9, 1 << _MANTISSA_BITS)))

    def code(self, coder: Coder, count: int, known: Integers) -> Integers:
        """Code a vector's bit patterns, 0 .. 65535."""
        parts = [NOTHING]
        for begin in range(0, count, _VECTOR_GROUP):
            size = min(_VECTOR_GROUP, count - begin)
            group = known[begin : begin + size]
            heads = coder.code(self._heads.probabilities(0), size, group >> _MANTISSA_BITS)
            self._heads.add(0, heads)
            low = group & ((1 << _MANTISSA_BITS) - 1)
            mantissas = code_in_contexts(coder, self._mantissas, heads, low)
            parts.append((heads << _MANTISSA_BITS) | mantissas)
        return np.concatenate(parts)
