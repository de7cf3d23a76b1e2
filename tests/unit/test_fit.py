"""Clips that fill a budget, for coders that behave as expected, nearly so, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.compress.fit import (
    LARGEST_CLIP,
    MOST_SOLVES,
    SMALLEST_CLIP,
    Solve,
    fills,
    next_clip,
)


def search(size_of: Callable[[float], int], limit: int, weights: int, start: float) -> list[Solve]:
    """All solves until the limit is filled or three were made."""
    tried = [Solve(start, size_of(start))]
    while not fills(tried[-1].size, limit) and len(tried) < MOST_SOLVES:
        clip = next_clip(tried, limit, weights)
        tried.append(Solve(clip, size_of(clip)))
    return tried


@settings(max_examples=300)
@given(
    st.floats(8, 30),
    st.floats(8, 30),
    st.floats(0.96, 1.04),
    st.floats(-0.04, 0.04),
    st.integers(0, 10_000),
)
def test_three_solves_fill_a_16_mb_budget(
    start: float, solution: float, rate: float, bend: float, noise: int
) -> None:
    """The rate is 4 % off the theory and bends; every size is a hundred bytes off."""
    weights = 36_000_000
    slope = rate * weights / (8 * math.log(2))

    def size_of(clip: float) -> int:
        x = math.log(clip / solution)
        wobble = 100 * math.sin(noise + 1e4 * clip)
        return round(15_960_000 - slope * (x + bend * x * x) + wobble)

    tried = search(size_of, 15_960_000, weights, start)
    if abs(math.log(start / solution)) < 0.25:
        assert fills(tried[-1].size, 15_960_000), tried


@pytest.mark.parametrize(("limit", "clip"), [(10**9, SMALLEST_CLIP), (-5, LARGEST_CLIP)])
def test_clips_stay_in_their_range(limit: int, clip: float) -> None:
    assert next_clip([Solve(12.85, 1_000_000)], limit, 2_000_000) == clip


def test_a_size_that_does_not_move_is_no_division_by_zero() -> None:
    tried = [Solve(12.0, 1000), Solve(13.0, 1000)]
    assert 13.0 < next_clip(tried, 900, 1000) <= LARGEST_CLIP


def test_fills_means_under_and_near() -> None:
    assert fills(1000, 1000)
    assert fills(1000, 1899)
    assert not fills(1001, 1000)
    assert not fills(1000, 1900)
