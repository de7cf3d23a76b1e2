"""Bin widths that fill a budget, for coders that behave as predicted, nearly so, or not at all."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.compress import fit
from paramgolf.compress.fit import (
    MAX_BIN_WIDTH,
    MIN_BIN_WIDTH,
    BinWidths,
    RateModel,
    Search,
    Spread,
    scaled,
)
from paramgolf.compress.scales import nearest_scales

ROWS, COLUMNS = 2_500, 1_200
NAMES = [f"matrix {i}" for i in range(12)]
LIMIT = 15_960_000


def true_bytes(spreads: dict[str, Spread], bin_widths: BinWidths, bend: float) -> float:
    """Entropy of normal variables, rounded with the scales of their rows, summed up."""
    total = 0.0
    integers = torch.arange(-128, 129, dtype=torch.float64)
    for name, (rows, columns) in spreads.items():
        scales, counts = nearest_scales(rows * bin_widths[name]).double().unique(return_counts=True)
        for scale, count in zip(scales, counts, strict=True):
            in_row = rows[nearest_scales(rows * bin_widths[name]).double() == scale].mean()
            edges = (integers[:, None] - 0.5) * scale / (in_row * columns)
            shares = torch.special.ndtr(edges).diff(dim=0).clamp(min=1e-30)
            total += int(count) * float(-(shares * shares.log2()).sum())
    return total / 8 * (1 + bend * math.log(bin_widths[NAMES[0]]))


def spreads_of(seed: int) -> dict[str, Spread]:
    generator = torch.Generator().manual_seed(seed)

    def log_normal(number: int, width: float) -> torch.Tensor:
        return torch.exp(width * torch.randn(number, generator=generator, dtype=torch.float64))

    return {name: Spread(log_normal(ROWS, 0.1), log_normal(COLUMNS, 0.4)) for name in NAMES}


def searched(search: Search, size_of: Callable[[BinWidths], int]) -> list[int]:
    """Follow a search to its end; the sizes of its solves."""
    sizes = []
    while (widths := search.next_widths()) is not None:
        sizes.append(size_of(widths))
        search.add(widths, sizes[-1])
    return sizes


@pytest.mark.parametrize(
    ("seed", "start", "bend", "balance"),
    [(0, 0.3, 0.003, False), (1, 0.4, -0.003, True), (2, 0.55, 0.0, True)],
)
def test_three_solves_fill_a_16_mb_budget(
    seed: int, start: float, bend: float, balance: bool
) -> None:
    """From far off, with rows that cluster and a coder whose rate drifts."""
    spreads = spreads_of(seed)
    widths = proportion = dict.fromkeys(NAMES, start)
    if balance:
        proportion = {name: start * 1.15 ** (i - 6) for i, name in enumerate(NAMES)}
    rate = RateModel(spreads)
    size = round(true_bytes(spreads, widths, bend))
    rate.learn(widths, size)
    assert rate.size(widths) == pytest.approx(size, rel=1e-12)
    search = Search(proportion, rate, LIMIT)
    sizes = searched(search, lambda widths: round(true_bytes(spreads, widths, bend)))
    assert len(sizes) <= 2
    assert 0 <= LIMIT - sizes[-1] < fit.SLACK_BYTES


EQUAL = dict.fromkeys(NAMES, 0.4)
SMALL = {name: Spread(rows[:50], columns) for name, (rows, columns) in spreads_of(0).items()}


def a_search(target: int, size_of: Callable[[BinWidths], int]) -> Search:
    """A search from equal bin widths, whose solve is the first."""
    search = Search(EQUAL, RateModel(SMALL), target)
    search.add(EQUAL, size_of(EQUAL))
    return search


def predicted_size(widths: BinWidths) -> int:
    """A coder that takes what is predicted, and 10,000 bytes for other parts."""
    return round(RateModel(SMALL).size(widths)) + 10_000


def steep_size(widths: BinWidths) -> int:
    """A coder unlike the prediction: the bytes fall much faster with wider bins."""
    return round(600_000 * math.exp(-2 * max(widths.values())))


def jumping_size(widths: BinWidths) -> int:
    """A coder that jumps by 10,000 bytes just where the target is predicted to be filled."""
    size = predicted_size(widths)
    return size + (8_000 if size > 249_000 else -2_000)


def test_a_coder_unlike_the_prediction_takes_more_than_three_solves() -> None:
    search = a_search(100_000, steep_size)
    sizes = searched(search, steep_size)
    assert 3 <= len(sizes) < fit.MAX_SOLVES - 1
    assert 0 <= 100_000 - sizes[-1] < fit.SLACK_BYTES


def test_a_jump_at_the_target_is_approached_from_both_sides() -> None:
    search = a_search(250_000, jumping_size)
    sizes = searched(search, jumping_size)
    assert len(sizes) == fit.MAX_SOLVES - 1
    assert search.best == max(size for size in sizes if size <= 250_000)
    assert search.best == pytest.approx(247_000, abs=100)
    assert min(size for size in sizes if size > 250_000) == pytest.approx(257_000, abs=100)


@pytest.mark.parametrize("size_of", [predicted_size, steep_size])
def test_a_target_below_the_widest_bins_is_proven_out_of_reach(
    size_of: Callable[[BinWidths], int],
) -> None:
    least = size_of(dict.fromkeys(NAMES, MAX_BIN_WIDTH))
    search = a_search(least - 1, size_of)
    assert searched(search, size_of)[-1] == least
    assert search.best is None
    search = a_search(least, size_of)
    assert searched(search, size_of)[-1] == search.best == least


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(100_000, 900_000))
def test_a_search_ends_within_the_target_or_with_the_widest_bins(seed: int, target: int) -> None:
    """Even if sizes have nothing to do with bin widths."""
    sizes: dict[tuple[float, ...], int] = {}
    generator = random.Random(seed)

    def random_size(widths: BinWidths) -> int:
        return sizes.setdefault(tuple(widths.values()), generator.randrange(1_000_000))

    search = a_search(target, random_size)
    searched(search, random_size)
    assert len(sizes) <= fit.MAX_SOLVES + 1
    assert search.best == max((size for size in sizes.values() if size <= target), default=None)
    assert search.best is not None or (MAX_BIN_WIDTH,) * len(NAMES) in sizes


@pytest.mark.parametrize(
    ("left", "solves", "filled"),
    [(0, 1, True), (1699, 2, True), (1700, 2, False), (1999, 3, True), (2000, 3, False),
     (-1, 3, False)],
)  # fmt: skip
def test_a_size_just_within_the_target_fills_it(left: int, solves: int, filled: bool) -> None:
    rate = RateModel(SMALL)
    for _ in range(solves - 1):
        rate.learn(EQUAL, 1)
    size = predicted_size(EQUAL)
    search = Search(EQUAL, rate, size + left)
    search.add(EQUAL, size)
    assert (search.next_widths() is None) == filled


def test_balanced_bin_widths_cause_the_same_divergence_per_weight() -> None:
    widths = {"a": 0.4, "b": 0.4, "c": 0.1}
    sizes = {"a": 1000, "b": 4000, "c": 500}
    measured = {"a": 0.02, "b": 0.01, "c": 0.003}
    found = fit.balanced(widths, measured, sizes)
    expected = {n: measured[n] * (found[n] / widths[n]) ** 2 / sizes[n] for n in sizes}
    assert max(expected.values()) == pytest.approx(min(expected.values()), rel=1e-9)
    assert sum(measured.values()) / 5500 == pytest.approx(expected["a"], rel=1e-9)


def test_no_bin_width_changes_by_more_than_a_limit() -> None:
    """A matrix whose divergence is lost in rounding is not given up."""
    widths, sizes = {"a": 0.4, "b": 0.4}, {"a": 1000, "b": 1000}
    found = fit.balanced(widths, {"a": -1e-9, "b": 1.0}, sizes)
    assert found["a"] == pytest.approx(8 * 0.4)
    assert found["b"] == pytest.approx(0.4 / math.sqrt(2))


@pytest.mark.parametrize(("limit", "width"), [(10**12, MIN_BIN_WIDTH), (-5, MAX_BIN_WIDTH)])
def test_bin_widths_stay_in_their_range(limit: int, width: float) -> None:
    widths = {name: 0.3 + 0.1 * i for i, name in enumerate(NAMES)}
    rate = RateModel(SMALL)
    rate.learn(widths, 350_000)
    assert set(scaled(widths, rate.log_factor(widths, limit)).values()) == {width}


def test_bin_widths_at_a_limit_leave_the_rest_to_the_others() -> None:
    widths = EQUAL | {NAMES[0]: 2.0}
    rate = RateModel(SMALL)
    rate.learn(widths, 350_000)
    found = scaled(widths, rate.log_factor(widths, 250_000))
    assert found[NAMES[0]] == MAX_BIN_WIDTH
    assert 0.4 < found[NAMES[1]] < MAX_BIN_WIDTH
    assert rate.size(found) == pytest.approx(250_000, abs=50)
    assert rate.size(found) <= 250_000


def test_a_matrix_of_zeros_takes_nothing() -> None:
    nothing = Spread(*torch.zeros(2, 0, dtype=torch.float64))
    rate = RateModel(dict.fromkeys(NAMES, nothing) | {NAMES[0]: SMALL[NAMES[0]]})
    rate.learn(EQUAL, 1000)
    assert rate.size(dict.fromkeys(NAMES, 0.2)) > 1000
