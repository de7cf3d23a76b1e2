"""Range coding under adaptive models: encoder, decoder, and models of scales and vectors.

The library constriction codes. The probabilities are computed from integers by additions,
multiplications and divisions in float64, which IEEE 754 rounds the same on every machine.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]
from numpy.typing import NDArray

Integers = NDArray[np.int32]

_Categorical = stream.model.Categorical
_Uniform = stream.model.Uniform

_PRIOR_COUNT = 64.0
_MIN_COUNT = 1e-2  # no symbol is impossible


class Coder(Protocol):
    """An encoder, which is given the symbols (`known`), or a decoder, which is given None."""

    def code(
        self, probabilities: NDArray[np.float64], count: int, known: Integers | None
    ) -> Integers:
        """Code `count` symbols of one distribution, which need not be normalised; return them."""
        ...

    def code_below(self, limits: Integers, known: Integers | None) -> Integers:
        """Code numbers that are uniform on 0 .. limit - 1, one for each limit; return them."""
        ...


def known_at(known: Integers | None, where: Any) -> Integers | None:
    """Return the known symbols at some indices; None in a decoder, which knows none."""
    return None if known is None else known[where]


class Encoder:
    """Writes symbols."""

    def __init__(self) -> None:
        self._coder = stream.queue.RangeEncoder()

    def code(
        self, probabilities: NDArray[np.float64], count: int, known: Integers | None
    ) -> Integers:
        """Write `known`."""
        assert known is not None
        self._coder.encode(known, _Categorical(probabilities, perfect=False))
        return known

    def code_below(self, limits: Integers, known: Integers | None) -> Integers:
        """Write `known`."""
        assert known is not None
        for limit, number in zip(limits.tolist(), known.tolist(), strict=True):
            self._coder.encode(np.array([number], np.int32), _Uniform(max(2, limit)))
        return known

    def content(self) -> bytes:
        """The stream."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads what an `Encoder` wrote; any bytes decode to symbols in range, or to a ValueError."""

    def __init__(self, content: bytes) -> None:
        if len(content) % 4:
            raise ValueError("the length of a coded stream is not a multiple of 4")
        self._coder = stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))

    def code(
        self, probabilities: NDArray[np.float64], count: int, known: Integers | None
    ) -> Integers:
        """Read `count` symbols."""
        return self._read(_Categorical(probabilities, perfect=False), count)

    def code_below(self, limits: Integers, known: Integers | None) -> Integers:
        """Read a number for each limit."""
        numbers = [self._read(_Uniform(max(2, limit)), 1)[0] for limit in limits.tolist()]
        return np.array(numbers, np.int32)

    def _read(self, model: object, count: int) -> Integers:
        try:
            return self._coder.decode(model, count)
        except AssertionError as error:
            raise ValueError("a coded stream is damaged") from error

    def finish(self) -> None:
        """Raise a ValueError if the stream contains more than was read."""
        if not self._coder.maybe_exhausted():
            raise ValueError("a coded stream is too long")


def normalized(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows divided by their sums, summed in sequence: the same on every machine."""
    return rows / np.cumsum(rows, axis=1)[:, -1:]


class Histogram:
    """Adaptive counts of the symbols 0 .. size - 1, one histogram per context.

    Attributes:
        prior: (contexts, size) distributions that the counts are added to; may be replaced.
    """

    def __init__(self, prior: NDArray[np.float64], symmetric: bool = False) -> None:
        """Start from a prior (contexts, size), which need not be normalised.

        A symmetric histogram counts each symbol half for itself and half for its mirror image.
        """
        self._symmetric = symmetric
        self.prior = normalized(prior)
        self._counts: NDArray[np.float64] = np.zeros(prior.shape)

    def probabilities(self, context: int) -> NDArray[np.float64]:
        """Return positive weights of a context's symbols, not normalised."""
        return self._counts[context] + _PRIOR_COUNT * self.prior[context] + _MIN_COUNT

    def add(self, context: int, symbols: Integers) -> None:
        """Count symbols."""
        counts = np.bincount(symbols, minlength=self._counts.shape[1]).astype(np.float64)
        if self._symmetric:
            counts = (counts + counts[::-1]) / 2
        self._counts[context] += counts


def code_in_contexts(
    coder: Coder,
    histogram: Histogram,
    contexts: NDArray[np.integer[Any]],
    rows: int,
    known: Integers | None = None,
) -> Integers:
    """Code rows of symbols by context, all of one context with one distribution.

    Within a context they are coded row by row.

    Args:
        coder: an encoder or a decoder.
        histogram: learns the symbols, one context at a time.
        contexts: (N,) the context of every column, the same in all rows.
        rows: R.
        known: (R, N) the symbols; None to decode.

    Returns:
        (R, N) the symbols.
    """
    order = np.argsort(contexts, kind="stable")
    ordered = None if known is None else known.take(order, axis=1)
    sizes = np.bincount(contexts)
    parts, begin = [], 0
    for context in np.flatnonzero(sizes).tolist():
        end = begin + int(sizes[context])
        part = None if ordered is None else ordered[:, begin:end].ravel()
        part = coder.code(histogram.probabilities(context), rows * (end - begin), part)
        histogram.add(context, part)
        parts.append(part.reshape(rows, -1))
        begin = end
    return np.concatenate(parts, axis=1).take(np.argsort(order), axis=1)


# Scales: powers of 2^(1/8).

_SCALE_ALPHABET = 64
_ESCAPE = _SCALE_ALPHABET - 1
_SCALE_OFFSET = 256  # of the exponents, which are those of float16 times 8: -192 .. 128


class ScaleModel:
    """Codes the exponents of scales, which lie close together within a matrix."""

    def __init__(self) -> None:
        distance = np.abs(np.arange(_SCALE_ALPHABET) - _SCALE_ALPHABET // 2)
        self._near = Histogram(1 / (1.0 + distance[None]) ** 2)

    def code(self, coder: Coder, count: int, known: Integers | None = None) -> Integers:
        """Code a matrix's exponents: their median, then each one's distance from it."""
        shifted = median = symbols = None
        if known is not None:
            shifted = known + _SCALE_OFFSET
            median = np.array([int(np.median(known)) + _SCALE_OFFSET], np.int32)
        (middle,) = coder.code_below(_limits(1), median)
        first = middle - _SCALE_ALPHABET // 2  # what symbol 0 stands for
        if shifted is not None:
            near = shifted - first
            symbols = np.where((near < 0) | (near >= _ESCAPE), _ESCAPE, near).astype(np.int32)
        parts = []
        for begin in range(0, count, _SCALE_ALPHABET):
            size = min(_SCALE_ALPHABET, count - begin)
            part = known_at(symbols, slice(begin, begin + size))
            parts.append(coder.code(self._near.probabilities(0), size, part))
            self._near.add(0, parts[-1])
        found = np.concatenate(parts)
        far = np.flatnonzero(found == _ESCAPE)
        found += first
        found[far] = coder.code_below(_limits(len(far)), known_at(shifted, far))
        return found - _SCALE_OFFSET


def _limits(count: int) -> Integers:
    return np.full(count, 2 * _SCALE_OFFSET, np.int32)


# Vectors: bfloat16.

_MANTISSA_BITS = 7
_VECTOR_GROUP = 64


class VectorModel:
    """Codes bfloat16 numbers: sign and exponent, then the mantissa in the context of these."""

    def __init__(self) -> None:
        self._heads = Histogram(np.ones((1, 1 << 9)))
        self._mantissas = Histogram(np.ones((1 << 9, 1 << _MANTISSA_BITS)))

    def code(self, coder: Coder, count: int, known: Integers | None = None) -> Integers:
        """Code a vector's bit patterns, 0 .. 65535."""
        high = low = None
        if known is not None:
            high, low = known >> _MANTISSA_BITS, known & ((1 << _MANTISSA_BITS) - 1)
        patterns = np.empty(count, np.int32)
        for begin in range(0, count, _VECTOR_GROUP):
            group = slice(begin, min(begin + _VECTOR_GROUP, count))
            size = group.stop - begin
            heads = coder.code(self._heads.probabilities(0), size, known_at(high, group))
            self._heads.add(0, heads)
            mantissas = code_in_contexts(
                coder, self._mantissas, heads, 1, None if low is None else low[None, group]
            )[0]
            patterns[group] = (heads << _MANTISSA_BITS) | mantissas
        return patterns
