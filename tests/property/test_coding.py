"""Range-coded streams: round trips, in close to the bits that the models predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paramgolf.compress import matrices
from paramgolf.compress.entropy import (
    Decoder,
    Encoder,
    Histogram,
    ScaleModel,
    VectorModel,
    code_in_contexts,
)
from paramgolf.compress.matrices import code_matrices
from paramgolf.compress.scales import scale_exponents, scales_from_exponents
from tests.helpers import MeasuringEncoder

Matrix = NDArray[np.int8]


def encoded(parts: list[Matrix]) -> tuple[bytes, float]:
    """The stream, and the bits that it should ideally take."""
    encoder = MeasuringEncoder()
    code_matrices(encoder, [(m.shape[0], m.shape[1]) for m in parts], parts)
    return encoder.content(), encoder.ideal_bits


def decoded(stream: bytes, shapes: list[tuple[int, int]]) -> list[Matrix]:
    decoder = Decoder(stream)
    found = code_matrices(decoder, shapes)
    decoder.finish()
    return found


def gaussian(
    rows: int, columns: int, most: int, seed: int = 0, ratio: float = 13, spread: float = 0.3
) -> Matrix:
    """Like a quantized matrix: columns of different spread."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, most / ratio, (rows, columns)) * rng.lognormal(0, spread, columns)
    return np.clip(np.rint(values), -most, most).astype(np.int8)


def make(kind: str, rng: np.random.Generator, rows: int, columns: int, most: int) -> NDArray[Any]:
    match kind:
        case "noise":
            return rng.integers(-most, most, (rows, columns), endpoint=True)
        case "zeros":
            return np.zeros((rows, columns))
        case "extremes":
            return rng.choice([-most, most], (rows, columns))
        case "copies":
            return np.tile(rng.integers(-most, most + 1, columns), (rows, 1))
    return gaussian(rows, columns, most, int(rng.integers(100)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 30)), min_size=1, max_size=3),
    st.sampled_from([1, 3, 31, 127]),
    st.sampled_from(["noise", "zeros", "extremes", "copies", "gaussian"]),
    st.integers(0, 1000),
)
def test_matrices_round_trip(
    shapes: list[tuple[int, int]], most: int, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for rows, columns in shapes:
        matrix = make(kind, rng, rows, columns, most)
        parts.append(matrix.astype(np.int8))
    stream, _ = encoded(parts)
    for matrix, wanted in zip(decoded(stream, shapes), parts, strict=True):
        assert matrix.dtype == np.int8
        assert np.array_equal(matrix, wanted)


def test_a_stream_takes_the_information_content_of_its_symbols() -> None:
    parts = [gaussian(256, 512, 31, seed) for seed in range(3)]
    stream, ideal_bits = encoded(parts)
    assert ideal_bits <= 8 * len(stream) < 1.001 * ideal_bits


def test_columns_of_different_spread_cost_less_than_their_common_entropy() -> None:
    """Close to the entropy if each column's distribution were known."""
    matrix = gaussian(2048, 256, 31, spread=0.5)

    def entropy(values: NDArray[np.int8]) -> float:
        counts = np.bincount(values.ravel().astype(int) + 31)
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log2(shares)).sum())

    stream, _ = encoded([matrix])
    bits = 8 * len(stream) / matrix.size
    by_column = float(np.mean([entropy(column) for column in matrix.T]))
    assert by_column < bits < by_column + 0.03
    assert bits < entropy(matrix) - 0.1


def test_rows_that_resemble_earlier_ones_cost_little() -> None:
    rng = np.random.default_rng(1)
    distinct = gaussian(64, 256, 127, ratio=20)
    row = gaussian(1, 256, 127, seed=2, ratio=20)
    copies = row + rng.integers(-1, 2, (64, 256)).astype(np.int8)
    first, _ = encoded([distinct])
    both, _ = encoded([np.concatenate([distinct, copies])])
    # The difference of two such rows has 2.2 bits; the first has no earlier row to resemble.
    assert 8 * (len(both) - len(first)) < 1.15 * copies.size * 2.2 + 10 * row.size


@given(st.binary(max_size=400), st.integers(1, 12), st.integers(1, 12))
def test_any_bytes_decode_in_range_or_are_rejected(stream: bytes, rows: int, columns: int) -> None:
    try:
        (matrix,) = decoded(stream, [(rows, columns)])
    except ValueError:
        return
    assert matrix.shape == (rows, columns)
    assert int(np.abs(matrix.astype(int)).max()) <= 127


def test_a_longer_stream_is_rejected() -> None:
    stream, _ = encoded([gaussian(4, 8, 31)])
    for more in (bytes(range(1, 101)), bytes(range(200, 220))):
        with pytest.raises(ValueError):
            decoded(stream + more, [(4, 8)])
    with pytest.raises(ValueError, match="multiple of 4"):
        decoded(stream + b"x", [(4, 8)])


@given(st.integers(1, 3000))
def test_groups_cover_all_rows(rows: int) -> None:
    groups = matrices._groups(rows)
    assert [row for begin, end in groups for row in range(begin, end)] == list(range(rows))
    assert all(end - begin <= max(8, begin / 12) for begin, end in groups)
    assert all(end - begin <= max(1, begin) for begin, end in groups)


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(-192, 127), min_size=1, max_size=150), min_size=1, max_size=3))
def test_scales_round_trip(matrices_exponents: list[list[int]]) -> None:
    arrays = [np.array(exponents, np.int32) for exponents in matrices_exponents]
    encoder, model = Encoder(), ScaleModel()
    for array in arrays:
        model.code(encoder, len(array), array)
    decoder, model = Decoder(encoder.content()), ScaleModel()
    for array in arrays:
        assert np.array_equal(model.code(decoder, len(array)), array)
    decoder.finish()


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 65_535), min_size=1, max_size=150), max_size=3))
def test_vectors_round_trip(vectors: list[list[int]]) -> None:
    arrays = [np.array(patterns, np.int32) for patterns in vectors]
    encoder, model = Encoder(), VectorModel()
    for array in arrays:
        model.code(encoder, len(array), array)
    decoder, model = Decoder(encoder.content()), VectorModel()
    for array in arrays:
        assert np.array_equal(model.code(decoder, len(array)), array)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 99))
def test_symbols_in_contexts_keep_their_order(of_columns: list[int], rows: int, seed: int) -> None:
    contexts = np.array(of_columns, np.uint8)
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, 10, (rows, len(contexts)), dtype=np.int32)
    encoder = Encoder()
    code_in_contexts(encoder, Histogram(np.ones((4, 10))), contexts, rows, symbols)
    decoder = Decoder(encoder.content())
    found = code_in_contexts(decoder, Histogram(np.ones((4, 10))), contexts, rows)
    assert np.array_equal(found, symbols)
    # A row that repeats the contexts is the same stream as several rows.
    flat = Encoder()
    repeated = np.tile(contexts, rows)
    code_in_contexts(flat, Histogram(np.ones((4, 10))), repeated, 1, symbols.reshape(1, -1))
    assert flat.content() == encoder.content()


def test_every_exponent_has_its_scale() -> None:
    exponents = torch.arange(-192, 128)
    scales = scales_from_exponents(exponents)
    assert scales.dtype == torch.float16
    expected = torch.pow(2.0, exponents.double() / 8)
    torch.testing.assert_close(scales.double(), expected, rtol=2**-11, atol=2.0**-25)
    assert torch.equal(scales_from_exponents(scale_exponents(scales)), scales)
    for wrong in (128, -193):
        with pytest.raises(ValueError, match="range"):
            scales_from_exponents(torch.tensor([wrong]))
