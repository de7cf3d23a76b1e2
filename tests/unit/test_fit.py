"""Steps that fill a budget, for coders that behave as expected, nearly so, or not at all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.compress import fit
from paramgolf.compress.fit import MAX_STEP, MIN_STEP, RateModel, Spread
from paramgolf.compress.scales import nearest_scales

ROWS, COLUMNS = 2_500, 1_200
NAMES = [f"matrix {i}" for i in range(12)]
LIMIT = 15_960_000


def true_bytes(spreads: dict[str, Spread], steps: dict[str, float], bend: float) -> float:
    """Entropy of normal variables rounded with the very scales of their rows, summed up."""
    total = 0.0
    integers = torch.arange(-128, 129, dtype=torch.float64)
    for name, (rows, columns) in spreads.items():
        scales, counts = nearest_scales(rows * steps[name]).double().unique(return_counts=True)
        for scale, count in zip(scales, counts, strict=True):
            in_row = rows[nearest_scales(rows * steps[name]).double() == scale].mean()
            edges = (integers[:, None] - 0.5) * scale / (in_row * columns)
            shares = torch.special.ndtr(edges).diff(dim=0).clamp(min=1e-30)
            total += int(count) * float(-(shares * shares.log2()).sum())
    return total / 8 * (1 + bend * math.log(steps[NAMES[0]]))


def spreads_of(seed: int) -> dict[str, Spread]:
    generator = torch.Generator().manual_seed(seed)

    def log_normal(number: int, width: float) -> torch.Tensor:
        return torch.exp(width * torch.randn(number, generator=generator, dtype=torch.float64))

    return {name: Spread(log_normal(ROWS, 0.1), log_normal(COLUMNS, 0.4)) for name in NAMES}


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 0.55), st.floats(-0.003, 0.003), st.booleans())
def test_three_solves_fill_a_16_mb_budget(
    seed: int, start: float, bend: float, rebalanced: bool
) -> None:
    """From far off, with rows that cluster and a coder whose rate drifts."""
    spreads = spreads_of(seed)
    steps = proportion = dict.fromkeys(NAMES, start)
    if rebalanced:
        proportion = {name: start * 1.15 ** (i - 6) for i, name in enumerate(NAMES)}
    sizes = [round(true_bytes(spreads, steps, bend))]
    rate = RateModel(spreads)
    for _ in range(fit.MAX_SOLVES - 1):
        rate.learn(steps, sizes[-1])
        assert rate.of(steps) == pytest.approx(sizes[-1], rel=1e-12)
        steps = fit.fill(proportion, rate.of, LIMIT - fit.AIM_BYTES)
        sizes.append(round(true_bytes(spreads, steps, bend)))
        if fit.fills(sizes[-1], LIMIT):
            break
    assert fit.fills(sizes[-1], LIMIT), sizes


def test_balanced_steps_cause_the_same_divergence_a_weight() -> None:
    steps = {"a": 0.4, "b": 0.4, "c": 0.1}
    sizes = {"a": 1000, "b": 4000, "c": 500}
    measured = {"a": 0.02, "b": 0.01, "c": 0.003}
    found = fit.balanced(steps, measured, sizes)
    expected = {n: measured[n] * (found[n] / steps[n]) ** 2 / sizes[n] for n in sizes}
    assert max(expected.values()) == pytest.approx(min(expected.values()), rel=1e-9)
    assert sum(measured.values()) / 5500 == pytest.approx(expected["a"], rel=1e-9)


def test_no_step_changes_beyond_reason() -> None:
    """A matrix whose divergence is lost in rounding is not given up."""
    steps, sizes = {"a": 0.4, "b": 0.4}, {"a": 1000, "b": 1000}
    found = fit.balanced(steps, {"a": -1e-9, "b": 1.0}, sizes)
    assert found["a"] == pytest.approx(8 * 0.4)
    assert found["b"] == pytest.approx(0.4 / math.sqrt(2))


@pytest.mark.parametrize(("limit", "step"), [(10**12, MIN_STEP), (-5, MAX_STEP)])
def test_steps_stay_in_their_range(limit: int, step: float) -> None:
    spreads = spreads_of(0)
    steps = {name: 0.3 + 0.1 * i for i, name in enumerate(NAMES)}
    rate = RateModel(spreads)
    rate.learn(steps, 16_000_000)
    assert set(fit.fill(steps, rate.of, limit).values()) == {step}


def test_steps_at_a_limit_leave_the_rest_to_the_others() -> None:
    spreads = spreads_of(0)
    steps = dict.fromkeys(NAMES, 0.4) | {NAMES[0]: 2.0}
    rate = RateModel(spreads)
    rate.learn(steps, 16_000_000)
    found = fit.fill(steps, rate.of, 12_000_000)
    assert found[NAMES[0]] == MAX_STEP
    assert 0.4 < found[NAMES[1]] < MAX_STEP
    assert rate.of(found) == pytest.approx(12_000_000, rel=1e-6)
    assert rate.of(found) <= 12_000_000


def test_a_matrix_of_zeros_takes_nothing() -> None:
    nothing = Spread(*torch.zeros(2, 0, dtype=torch.float64))
    spreads = dict.fromkeys(NAMES, nothing) | {NAMES[0]: spreads_of(0)[NAMES[0]]}
    rate = RateModel(spreads)
    rate.learn(dict.fromkeys(NAMES, 0.4), 1000)
    assert rate.of(dict.fromkeys(NAMES, 0.2)) > 1000


def test_fills_means_under_and_near() -> None:
    assert fit.fills(1000, 1000)
    assert fit.fills(1000, 2699)
    assert not fit.fills(1001, 1000)
    assert not fit.fills(1000, 2700)
