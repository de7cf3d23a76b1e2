"""Scales, GPTQ, Hessians and sensitivities against column-by-column formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.compress.gptq import factor_hessians, pivots, report, solve
from paramgolf.compress.hessian import collect_hessians
from paramgolf.compress.quantize import Quantizer
from paramgolf.compress.quantized import Quantized
from paramgolf.compress.scales import column_scales, round_to_integers, row_scales
from paramgolf.compress.sensitivity import divergences
from paramgolf.model.gpt import GPT
from paramgolf.model.layout import layout
from paramgolf.model.order import layer_order
from paramgolf.model.roles import MATRIX_NAMES, input_of
from tests.helpers import (
    Array,
    in_numpy,
    randn,
    random_model,
    random_tokens,
    small_config,
)
from tests.reference import forward, rms_norm


def correlated_hessian(columns: int, seed: int, samples: int | None = None) -> Tensor:
    """Sum of x x^T over inputs with a few strong directions and unequal channels."""
    x = randn(samples or 4 * columns, columns, seed=seed)
    x = x + 3 * randn(len(x), 4, seed=seed + 1) @ randn(4, columns, seed=seed + 2)
    return (x * torch.linspace(0.2, 2, columns, dtype=torch.float64)).T @ (
        x * torch.linspace(0.2, 2, columns, dtype=torch.float64)
    )


def damped(hessian: Tensor, damping: float) -> Array:
    result = hessian.double().numpy().copy()
    result[np.diag_indices(len(result))] += damping * np.diag(result).mean()
    return result


def quadratic_error(weights: Array, quantized: Array, hessian: Array) -> float:
    difference = weights - quantized
    return float(np.trace(difference @ hessian @ difference.T))


# Scales


BIN_WIDTH = 12.85 / 31


def widths(count: int, width: float = BIN_WIDTH) -> Tensor:
    return torch.full((count,), width)


def test_row_scales_are_the_nearest_eighths_of_an_octave() -> None:
    weights = randn(2, 5, 40, seed=0) * torch.logspace(-3, 2, 5, dtype=torch.float64)[:, None]
    weights += 0.5  # the deviation is around the mean of the row
    wanted = torch.tensor([0.1, 0.4])
    scales = row_scales(weights, wanted)
    expected = wanted.double().numpy()[:, None] * np.std(weights.numpy(), axis=-1)
    assert scales.dtype == torch.float16
    got = scales.double().numpy()
    off = np.abs(np.log2(got / expected))
    assert off.max() < 1 / 16 + 1e-3  # half a notch of the grid, and float16
    assert off.max() > 1 / 40
    # Every scale is a power of 2^(1/8), rounded to float16.
    eighths = np.log2(got) * 8
    np.testing.assert_allclose(eighths, np.rint(eighths), rtol=0, atol=8 * 2**-11)


def test_column_scales_follow_the_pivots() -> None:
    pivots_MC = torch.exp(randn(3, 50, seed=1))
    scales = column_scales(pivots_MC)
    assert scales.dtype == torch.float16
    ratio = scales.double() / pivots_MC
    spread = (ratio / ratio.log().mean(dim=1, keepdim=True).exp()).log2().abs()
    assert float(spread.max()) < 1 / 16 + 0.02
    np.testing.assert_allclose(scales.double().log2().mean(dim=1), 0, atol=0.02)
    assert torch.equal(column_scales(torch.full((2, 4), 3.7)), torch.ones(2, 4).half())


def test_integers_are_nearest_and_within_range() -> None:
    weights = randn(6, 300, seed=1, dtype=torch.float32)
    scales = row_scales(weights[None], widths(1, 0.02))[0][
        :, None
    ]  # so small that some are clipped
    integers = round_to_integers(weights, scales)
    quotients = weights.double().numpy() / scales.double().numpy()
    expected = np.clip(np.rint(quotients), -127, 127)
    assert np.array_equal(integers.numpy(), expected)
    assert integers.abs().max() == 127
    factor = factor_hessians(correlated_hessian(300, seed=0)[None], 0.01)
    solved = solve(weights[None], factor, scales.T)
    assert solved.dtype == torch.int8
    assert solved.abs().max() == 127


def test_rows_of_zeros_or_constants_have_the_smallest_scale() -> None:
    weights = randn(1, 3, 8, seed=0)
    weights[0, 1] = 0
    weights[0, 2] = 1e-9
    scales = row_scales(weights, widths(1))
    assert scales[0, 1:].tolist() == [2.0**-24, 2.0**-24]
    integers = solve(weights, factor_hessians(correlated_hessian(8, 0)[None], 0.01), scales)
    assert not integers[0, 1:].any()
    assert integers[0, 0].any()


@pytest.mark.parametrize("value", [1e9, float("inf"), float("nan")])
def test_diverged_weights_are_rejected(value: float) -> None:
    weights = randn(2, 3, 8, seed=0, dtype=torch.float32)
    weights[1, 2, 3] = value
    with pytest.raises(ValueError, match="diverged"):
        row_scales(weights, widths(2))


# GPTQ


def naive_gptq(
    weights: Array, hessian: Array, order: NDArray[np.intp], scales: Array, given: Array
) -> Array:
    """The integer that each column should get, if those before it got the `given` ones.

    Column by column with an explicit inverse Hessian: quantize, move the error to the columns
    left, eliminate the column from the inverse. Following the given integers keeps a tie that
    float32 rounds differently from affecting the rest of its row. Scales are (R, C).
    """
    weights, inverse = weights.copy(), np.linalg.inv(hessian)
    integers = np.zeros_like(weights)
    for j in order:
        integers[:, j] = np.clip(np.rint(weights[:, j] / scales[:, j]), -127, 127)
        error = weights[:, j] - given[:, j] * scales[:, j]
        weights -= np.outer(error / inverse[j, j], inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return integers


def both_scales(rows: Tensor, columns: Tensor | None, count: int) -> Array:
    scales = rows.double().numpy()[:, None]
    return scales * (np.ones(count) if columns is None else columns.double().numpy())


@pytest.mark.parametrize("with_columns", [False, True])
@pytest.mark.parametrize("width", [0.02, BIN_WIDTH, 1.5])
@pytest.mark.parametrize("columns", [40, 128, 200, 256, 300])
def test_solve_equals_naive_gptq(columns: int, width: float, with_columns: bool) -> None:
    weights = randn(2, 24, columns, seed=columns, dtype=torch.float32)
    hessians = torch.stack([correlated_hessian(columns, seed) for seed in (0, 10)])
    scales = row_scales(weights, widths(2, width))
    factor = factor_hessians(hessians, 0.01)
    own = column_scales(pivots(factor)) if with_columns else None
    integers = solve(weights, factor, scales, own)
    assert integers.shape == weights.shape
    for number, got in enumerate(integers):
        expected = naive_gptq(
            weights[number].double().numpy(),
            damped(hessians[number], 0.01),
            np.argsort(-np.diag(hessians[number].numpy()), kind="stable"),
            both_scales(scales[number], None if own is None else own[number], columns),
            got.double().numpy(),
        )
        difference = np.abs(got.numpy() - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.001


def test_pivots_are_what_an_error_costs() -> None:
    """An error of 1 in column c, compensated in the later ones, costs 1 / pivot^2."""
    hessian = correlated_hessian(12, seed=2)
    factor = factor_hessians(hessian[None], 0.01)
    wide, order = damped(hessian, 0.01), factor.order_MC[0].tolist()
    found = pivots(factor)[0].double().numpy()
    for place, column in enumerate(order):
        later = order[place + 1 :]
        cost = wide[column, column]
        if later:
            cross = wide[later, column]
            cost -= cross @ np.linalg.solve(wide[np.ix_(later, later)], cross)
        assert found[column] ** -2 == pytest.approx(cost, rel=1e-4)


def test_columns_with_separate_scales_cost_less_at_equal_bits() -> None:
    """The gain of water-filling: arithmetic over geometric mean of the columns' costs."""
    columns = 200
    hessian = correlated_hessian(columns, seed=4)
    hessian *= torch.outer(*2 * [torch.logspace(-1, 1, columns, dtype=torch.float64)])
    weights = randn(1, 64, columns, seed=5, dtype=torch.float32)
    factor = factor_hessians(hessian[None], 0.01)
    errors, bits = [], []
    for own in (torch.ones(1, columns), column_scales(pivots(factor))):
        scales = torch.full((1, 64), 0.1).half()
        integers = solve(weights, factor, scales, own)[0]
        rebuilt = integers.double().numpy() * both_scales(scales[0], own[0], columns)
        errors.append(quadratic_error(weights[0].double().numpy(), rebuilt, damped(hessian, 0.01)))
        deviations = integers.double().std(dim=0).clamp(min=0.3)
        bits.append(float(deviations.log2().mean()))
    costs = pivots(factor)[0].double() ** -2
    gain = float(costs.mean() / costs.log().mean().exp())
    assert gain > 1.5
    assert bits[1] == pytest.approx(bits[0], abs=0.1)
    assert errors[0] / errors[1] == pytest.approx(gain, rel=0.15)


@pytest.mark.parametrize(("columns", "share"), [(96, 0.0), (200, 0.01)])
def test_a_batch_is_solved_as_one_by_one(columns: int, share: float) -> None:
    """Bit for bit within a block of 128 columns; beyond it a matrix product may round apart."""
    weights = randn(3, 16, columns, seed=0, dtype=torch.float32)
    hessians = torch.stack([correlated_hessian(columns, seed) for seed in (0, 10, 20)])
    scales = row_scales(weights, widths(3, 0.5))
    together = solve(weights, factor_hessians(hessians, 0.01), scales)
    for i in range(3):
        one = slice(i, i + 1)
        alone = solve(weights[one], factor_hessians(hessians[one], 0.01), scales[one])
        assert float((alone[0] != together[i]).double().mean()) <= share


@pytest.mark.parametrize("width", [0.1, BIN_WIDTH, 1.5])
def test_gptq_is_better_than_nearest_on_correlated_inputs(width: float) -> None:
    weights = randn(4, 16, 150, seed=3, dtype=torch.float32)
    hessians = torch.stack([correlated_hessian(150, seed) for seed in range(4)])
    scales = row_scales(weights, widths(4, width))
    integers = solve(weights, factor_hessians(hessians, 0.01), scales)
    for matrix, hessian, scale, got in zip(weights, hessians, scales, integers, strict=True):
        wide, column = matrix.double().numpy(), scale.double().numpy()[:, None]
        nearest = np.clip(np.rint(wide / column), -127, 127)
        gptq_error = quadratic_error(wide, got.numpy() * column, hessian.numpy())
        assert gptq_error < 0.8 * quadratic_error(wide, nearest * column, hessian.numpy())


def test_gptq_with_a_diagonal_hessian_is_rounding_to_nearest() -> None:
    weights = randn(1, 16, 150, seed=0, dtype=torch.float32)
    scales = row_scales(weights, widths(1))
    hessian = torch.diag(torch.linspace(1, 5, 150, dtype=torch.float64))
    integers = solve(weights, factor_hessians(hessian[None], 0.01), scales)
    expected = round_to_integers(weights[0], scales[0][:, None])
    assert torch.equal(integers[0].float(), expected)


# Factoring


def test_factor_is_of_the_permuted_damped_inverse() -> None:
    hessians = torch.stack([correlated_hessian(30, seed) for seed in (0, 10)]).float()
    factor = factor_hessians(hessians, 0.05)
    assert factor.damping_M.tolist() == pytest.approx([0.05, 0.05], rel=1e-12)
    assert factor.upper_MCC.dtype == torch.float32
    assert torch.equal(factor.upper_MCC, factor.upper_MCC.triu())
    for hessian, upper, order in zip(hessians, factor.upper_MCC, factor.order_MC, strict=True):
        assert sorted(order.tolist()) == list(range(30))
        falling = hessian.diagonal()[order]
        assert bool((falling[:-1] >= falling[1:]).all())
        permuted = damped(hessian, 0.05)[np.ix_(order.numpy(), order.numpy())]
        product = upper.double().numpy().T @ upper.double().numpy()
        np.testing.assert_allclose(product @ permuted, np.eye(30), rtol=0, atol=1e-4)


def test_damping_is_raised_for_the_indefinite_hessian_only() -> None:
    """An eigenvalue of -0.3 mean diagonals needs the second tenfold of 0.01."""
    good = correlated_hessian(20, seed=0)
    values = torch.linspace(0.5, 2.0, 20, dtype=torch.float64)
    values[0] = -0.3 * 1.2
    basis, _ = torch.linalg.qr(randn(20, 20, seed=5))
    bad = basis @ torch.diag(values) @ basis.T
    assert -0.36 / float(bad.diagonal().mean()) == pytest.approx(-0.3, abs=0.01)
    factor = factor_hessians(torch.stack([good, bad, 2 * good]), 0.01)
    assert factor.damping_M.tolist() == pytest.approx([0.01, 1.0, 0.01], rel=1e-12)
    alone = factor_hessians(good[None], 0.01)
    assert torch.equal(factor.upper_MCC[0], alone.upper_MCC[0])
    order = factor.order_MC[1].numpy()
    upper = factor.upper_MCC[1].double().numpy()
    permuted = damped(bad, 1.0)[np.ix_(order, order)]
    np.testing.assert_allclose(upper.T @ upper @ permuted, np.eye(20), rtol=0, atol=1e-4)


def test_hessians_beyond_all_damping_are_rejected() -> None:
    hopeless = torch.tensor([[1.0, 1e6], [1e6, 1.0]])  # eigenvalue -1e6 mean diagonals
    with pytest.raises(ValueError, match="not positive definite"):
        factor_hessians(torch.stack([torch.eye(2), hopeless]), 0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hessians_of_a_diverged_model_are_rejected(value: float) -> None:
    hessians = torch.stack([torch.eye(3), torch.eye(3)])
    hessians[1, 0, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        factor_hessians(hessians, 0.01)


def test_dead_columns_are_rounded_to_nearest_and_affect_nothing() -> None:
    columns, dead = 140, [0, 7, 139]
    alive = [c for c in range(columns) if c not in dead]
    hessian = correlated_hessian(columns, seed=0)
    hessian[dead] = 0
    hessian[:, dead] = 0
    weights = randn(1, 12, columns, seed=1, dtype=torch.float32)
    scales = row_scales(weights, widths(1, 0.5))
    factor = factor_hessians(hessian[None], 0.01)
    assert factor.order_MC[0, -3:].tolist() == dead, "last, in a stable order"
    integers = solve(weights, factor, scales)[0]
    nearest = round_to_integers(weights[0], scales[0][:, None])
    assert torch.equal(integers[:, dead].float(), nearest[:, dead])
    expected = naive_gptq(
        weights[0].double().numpy(),
        damped(hessian, 0.01),
        np.argsort(-np.diag(hessian.numpy()), kind="stable"),
        both_scales(scales[0], None, columns),
        integers.double().numpy(),
    )
    assert (integers.numpy()[:, alive] != expected[:, alive]).mean() < 0.001


def test_a_hessian_of_zeros_rounds_to_nearest() -> None:
    weights = randn(1, 4, 10, seed=1, dtype=torch.float32)
    scales = row_scales(weights, widths(1))
    factor = factor_hessians(torch.zeros(1, 10, 10), 0.01)
    columns = column_scales(pivots(factor))
    assert torch.equal(columns, torch.ones(1, 10).half())
    integers = solve(weights, factor, scales, columns)
    assert torch.equal(integers[0].float(), round_to_integers(weights[0], scales[0][:, None]))


# Report


def test_report_equals_its_formulas() -> None:
    weights = randn(10, 60, seed=0, dtype=torch.float32)
    hessian = correlated_hessian(60, seed=1)
    factor = factor_hessians(hessian[None], 0.01)
    rows, columns = row_scales(weights[None], widths(1, 0.02)), column_scales(pivots(factor))
    quantized = Quantized(solve(weights[None], factor, rows, columns)[0], rows[0], columns[0])
    integers = quantized.integers
    measured = report(weights, hessian.float(), integers, quantized.scales(), 0.25)

    wide, scales = weights.double().numpy(), both_scales(rows[0], columns[0], 60)
    h = hessian.float().double().numpy()
    whole = np.trace(wide @ h @ wide.T)
    nearest = np.clip(np.rint(wide / scales), -127, 127) * scales
    gptq_share = quadratic_error(wide, integers.numpy() * scales, h) / whole
    assert measured.gptq_error == pytest.approx(gptq_share, rel=1e-6)
    nearest_share = quadratic_error(wide, nearest, h) / whole
    assert measured.nearest_error == pytest.approx(nearest_share, rel=1e-4)
    _, counts = np.unique(integers.numpy(), return_counts=True)
    shares = counts / counts.sum()
    assert measured.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-9)
    at_ends = (np.abs(integers.numpy()) == 127).mean()
    assert at_ends > 0.005
    assert measured.clipped_share == pytest.approx(at_ends, rel=1e-9)
    assert measured.damping == 0.25


def test_report_of_exact_and_constant_integers() -> None:
    integers = torch.full((2, 8), 3, dtype=torch.int8)
    scales = torch.tensor([0.5, 2.0])[:, None].expand(2, 8)
    measured = report(3 * scales, torch.eye(8), integers, scales, 0)
    assert measured[:4] == (0.0, 0.0, 0.0, 0.0)
    dead = report(torch.ones(2, 8), torch.zeros(8, 8), integers, scales, 0)
    assert (dead.gptq_error, dead.nearest_error) == (0.0, 0.0)


# Hessians of a model


@pytest.mark.parametrize("recurrent", [True, False])
def test_hessians_equal_sums_over_all_visits(recurrent: bool) -> None:
    config = small_config()
    model = random_model(config, seed=0)
    orders = {True: ([0, 1, 2, 3, 2], [3, 2, 3, 4, 5]), False: ([0, 1, 2], [3, 4, 5])}
    batches = [random_tokens(config, rows, 16, seed) for seed, rows in enumerate((2, 1))]
    numbers: list[int] = []
    hessians = collect_hessians(
        model, layer_order(config, recurrent), iter(batches), numbers.append
    )
    assert numbers == [1, 2]

    expected: dict[str, Array] = {}
    for batch in batches:
        reference = forward(in_numpy(model), config, batch, *orders[recurrent])
        inputs = reference.inputs | {"embedding": list(reference.stream)}
        for name, vectors in inputs.items():
            for x in np.concatenate(vectors):
                expected[name] = expected.get(name, 0) + np.outer(x, x)
    assert hessians.keys() == expected.keys()
    for name, hessian in hessians.items():
        assert hessian.dtype == torch.float64
        np.testing.assert_allclose(hessian.numpy(), expected[name], rtol=1e-9, atol=1e-9)
    # Normalised inputs have a known sum of squares, which counts the visits.
    visits = {layer: sum(o.count(layer) for o in orders[recurrent]) for layer in range(6)}
    assert visits[2] == visits[3] == (3 if recurrent else 1)
    for layer, count in visits.items():
        trace = float(hessians[f"blocks.{layer}.attention"].trace())
        assert trace == pytest.approx(count * 3 * 16 * config.width / (layer + 1), rel=1e-4)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_float32_hessians_stay_float32() -> None:
    config = small_config()
    model = random_model(config, seed=0, dtype=torch.float32)
    batch = random_tokens(config, 2, 16)
    order = layer_order(config, recurrent=True)
    stream = model(batch, order).detach().double().numpy().reshape(-1, config.width)
    hessian = collect_hessians(model, order, [batch])["embedding"]
    assert hessian.dtype == torch.float32
    assert not hessian.requires_grad
    np.testing.assert_allclose(hessian.numpy(), stream.T @ stream, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(rms_norm(stream), stream, atol=1e-4)


def test_query_key_and_value_share_a_hessian() -> None:
    config = small_config()
    shared: dict[str, list[str]] = {}
    for name in layout(config)[0]:
        shared.setdefault(input_of(name), []).append(name)
    assert shared.pop("embedding") == ["embedding"]
    for layer in range(6):
        block = f"blocks.{layer}."
        assert shared.pop(f"{block}attention") == [block + n for n in ("query", "key", "value")]
        for name in ("output", "up", "down"):
            assert shared.pop(block + name) == [block + name]
    assert not shared
    hessians = collect_hessians(
        random_model(config, seed=0), layer_order(config, True), [random_tokens(config, 1, 16)]
    )
    for name, shape in layout(config)[0].items():
        assert hessians[input_of(name)].shape == (shape[1], shape[1])


# A whole model


def calibrated(
    num_batches: int = 1, **shape: int
) -> tuple[GPT, dict[str, Tensor], dict[str, Tensor]]:
    """A random model, its matrices, and their Hessians."""
    config = small_config(**shape)
    model = random_model(config, seed=0, dtype=torch.float32)
    order = layer_order(config, recurrent=True)
    batches = [random_tokens(config, 16, 16, seed) for seed in range(num_batches)]
    hessians = collect_hessians(model, order, batches)
    matrices = {name: model.get_parameter(name).detach() for name in layout(config)[0]}
    return model, matrices, hessians


@pytest.mark.parametrize("split_columns", [False, True])
def test_quantize_a_model(split_columns: bool) -> None:
    """Also with block matrices in the shape of the embedding, but with other bin widths."""
    _, matrices, hessians = calibrated(2, num_layers=5, width=32, mlp_ratio=10, vocab_size=320)
    assert matrices["embedding"].shape == matrices["blocks.0.up"].shape
    before = {name: matrix.clone() for name, matrix in matrices.items()}
    wanted = {name: 0.1 if name == "embedding" else 0.2 + 0.01 * i for i, name in enumerate(before)}

    quantizer = Quantizer(matrices, hessians, 0.01, split_columns)
    quantized = quantizer.solve(wanted)

    blocks = [f"blocks.{i}.{name}" for i in range(5) for name in MATRIX_NAMES]
    assert quantized.keys() == {"embedding", *blocks}
    assert quantizer.dampings == pytest.approx(dict.fromkeys(quantized, 0.01), rel=1e-12)
    for name, result in quantized.items():
        weights = before[name]
        assert torch.equal(matrices[name], weights), "the weights are unchanged"
        assert result.integers.shape == weights.shape
        assert result.integers.dtype == torch.int8
        assert result.rows.dtype == result.columns.dtype == torch.float16
        assert result.columns.shape == weights.shape[1:]
        assert bool((result.columns == 1).all()) != split_columns
        # The same as alone, with its own Hessian: batching by shape changes nothing.
        hessian = hessians[input_of(name)][None]
        factor = factor_hessians(hessian, 0.01)
        columns = column_scales(pivots(factor)) if split_columns else torch.ones(1, len(hessian[0]))
        assert torch.equal(result.columns, columns[0].half())
        rows = row_scales(weights[None] / columns.float(), torch.tensor([wanted[name]]))
        assert torch.equal(result.rows, rows[0])
        alone = solve(weights[None], factor, rows, columns.half())[0]
        assert float((alone != result.integers).double().mean()) < 0.01
        # The spreads of the weights predict those of the integers.
        spreads = result.integers.double().square().mean(dim=0).sqrt()
        predicted = (quantizer.spreads[name].columns / wanted[name]).square() + 1 / 12
        assert float((spreads / predicted.sqrt()).log().mean()) == pytest.approx(0, abs=0.05)
        # The output on the calibration inputs is closer than by rounding to nearest, which
        # moves every weight uniformly within a bin: rms of the bin widths / sqrt(12).
        wide, scales = weights.double().numpy(), result.scales().double().numpy()
        rebuilt = result.dequantize().double().numpy()
        np.testing.assert_allclose(rebuilt, result.integers.numpy() * scales, rtol=1e-6)
        nearest = np.clip(np.rint(wide / scales), -127, 127) * scales
        h = hessian[0].double().numpy()
        assert quadratic_error(wide, rebuilt, h) < quadratic_error(wide, nearest, h)
        expected = float((scales**2).mean() / 12)
        assert np.mean((nearest - wide) ** 2) == pytest.approx(expected, rel=0.2)
        assert np.mean((rebuilt - wide) ** 2) < 4 * expected


def test_raised_damping_is_reported_by_name() -> None:
    _, matrices, hessians = calibrated(num_layers=4)
    bad = hessians["blocks.2.attention"]
    bad -= 0.3 * bad.diagonal().mean() * torch.eye(len(bad))  # its smallest eigenvalues were near 0
    least = float(torch.linalg.eigvalsh(bad.double())[0] / bad.diagonal().double().mean())
    dampings = Quantizer(matrices, hessians, 0.02, True).dampings
    assert dampings.keys() == matrices.keys()
    raised = {name for name, damping in dampings.items() if damping > 0.02}
    assert raised == {f"blocks.2.{name}" for name in ("query", "key", "value")}
    for name in raised:
        assert dampings[name] > -least  # enough to be positive definite, in tenfolds
        assert np.log10(dampings[name] / 0.02) == pytest.approx(
            round(np.log10(-least / 0.02) + 0.5)
        )


def test_a_diverged_model_is_rejected() -> None:
    _, matrices, hessians = calibrated(num_layers=4)
    matrices["blocks.1.up"] = matrices["blocks.1.up"].clone()
    matrices["blocks.1.up"][3, 4] = float("nan")
    quantizer = Quantizer(matrices, hessians, 0.01, True)
    with pytest.raises(ValueError, match="diverged"):
        quantizer.solve(dict.fromkeys(matrices, 0.4))


def test_divergences_equal_their_definition() -> None:
    """Sum of p (log p - log q) in float64, one matrix replaced at a time, the model unchanged."""
    config = small_config(num_layers=4)
    model = random_model(config, seed=0)
    order, tokens = layer_order(config, recurrent=True), random_tokens(config, 2, 16)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    replacements = {
        name: before[name] + 0.1 * randn(*before[name].shape, seed=3) for name in layout(config)[0]
    }
    numbers: list[int] = []
    computed: list[int] = []
    counters = [
        block.register_forward_hook(lambda *_, layer=layer: computed.append(layer))
        for layer, block in enumerate(model.block_list())
    ]
    found = divergences(model, order, tokens, replacements, numbers.append)
    for counter in counters:
        counter.remove()
    assert numbers == list(range(1, len(replacements) + 1))
    assert list(found) == list(replacements)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])

    # Once as it is, once for the embedding, and for the six matrices of every block from there on.
    visits = order.encoder + order.decoder
    firsts = [0, 0, *(visits.index(layer) for layer in range(4) for _ in range(6))]
    assert computed == [layer for first in firsts for layer in visits[first:]]

    def log_probabilities() -> Array:
        with torch.no_grad():
            logits = model.logits(model(tokens, order)).numpy()
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    expected = log_probabilities()
    for name, value in replacements.items():
        with torch.no_grad():
            model.get_parameter(name).copy_(value)
        changed = log_probabilities()
        with torch.no_grad():
            model.get_parameter(name).copy_(before[name])
        wanted = (np.exp(expected) * (expected - changed)).sum() / tokens.numel()
        assert wanted > 1e-6
        assert found[name] == pytest.approx(wanted, rel=1e-9)
