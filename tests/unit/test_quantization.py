"""SDClip, GPTQ, Hessians and `quantize` against column-by-column formulas in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from paramgolf.compress.artifact import layout
from paramgolf.compress.clip import largest_integer, round_to_integers, row_scales
from paramgolf.compress.gptq import factor_hessians, report, solve
from paramgolf.compress.hessian import collect_hessians, input_of
from paramgolf.config import PackConfig
from paramgolf.model.gpt import MATRIX_NAMES
from paramgolf.model.order import layer_order
from paramgolf.stages.pack import quantize
from tests.helpers import (
    Array,
    in_numpy,
    random_model,
    random_tokens,
    reference_forward,
    rms_norm,
    small_config,
)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def correlated_hessian(columns: int, seed: int, samples: int | None = None) -> Tensor:
    """Sum of x x^T over inputs that have a few strong directions and unequal channels."""
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


# SDClip


@pytest.mark.parametrize(("bits", "most"), [(2, 1), (3, 3), (6, 31), (8, 127)])
def test_row_scales_are_the_nearest_eighths_of_an_octave(bits: int, most: int) -> None:
    assert largest_integer(bits) == most
    weights = randn(2, 5, 40, seed=0) * torch.logspace(-3, 2, 5, dtype=torch.float64)[:, None]
    weights += 0.5  # the deviation is around the mean of the row
    scales = row_scales(weights, bits, 12.85)
    expected = 12.85 * np.std(weights.numpy(), axis=-1) / most
    assert scales.dtype == torch.float16
    got = scales.double().numpy()
    off = np.abs(np.log2(got / expected))
    assert off.max() < 1 / 16 + 1e-3  # half a step, and float16
    assert off.max() > 1 / 40
    # Every one is a power of 2^(1/8), as far as float16 can say.
    steps = np.log2(got) * 8
    np.testing.assert_allclose(steps, np.rint(steps), rtol=0, atol=8 * 2**-11)


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_integers_are_nearest_and_within_range(bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    weights = randn(6, 300, seed=1, dtype=torch.float32)
    scales = row_scales(weights[None], bits, 2.0)[0][:, None]  # a small clip: many are cut off
    integers = round_to_integers(weights, scales, bits)
    quotients = weights.double().numpy() / scales.double().numpy()
    expected = np.clip(np.rint(quotients), -most, most)
    assert np.array_equal(integers.numpy(), expected)
    assert integers.abs().max() == most
    factor = factor_hessians(correlated_hessian(300, seed=0)[None], 0.01)
    solved = solve(weights[None], factor, scales.T, bits)
    assert solved.dtype == torch.int8
    assert solved.abs().max() == most


def test_rows_of_zeros_or_constants_have_the_smallest_scale() -> None:
    weights = randn(1, 3, 8, seed=0)
    weights[0, 1] = 0
    weights[0, 2] = 1e-9
    scales = row_scales(weights, 6, 12.85)
    assert scales[0, 1:].tolist() == [2.0**-24, 2.0**-24]
    integers = solve(weights, factor_hessians(correlated_hessian(8, 0)[None], 0.01), scales, 6)
    assert not integers[0, 1:].any()
    assert integers[0, 0].any()


@pytest.mark.parametrize("value", [1e9, float("inf"), float("nan")])
def test_diverged_weights_are_refused(value: float) -> None:
    weights = randn(2, 3, 8, seed=0, dtype=torch.float32)
    weights[1, 2, 3] = value
    with pytest.raises(ValueError, match="diverged"):
        row_scales(weights, 6, 12.85)


# GPTQ


def naive_gptq(
    weights: Array, hessian: Array, order: Array, scales: Array, most: int, given: Array
) -> Array:
    """The integer that each column should get, if those before it got the `given` ones.

    Column by column with an explicit inverse Hessian: quantize, move the error to the columns
    left, eliminate the column from the inverse. Following the given integers keeps one tie that
    float32 rounds the other way from spreading over the rest of its row.
    """
    weights, inverse = weights.copy(), np.linalg.inv(hessian)
    integers = np.zeros_like(weights)
    for j in order:
        integers[:, j] = np.clip(np.rint(weights[:, j] / scales), -most, most)
        error = weights[:, j] - given[:, j] * scales
        weights -= np.outer(error / inverse[j, j], inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return integers


@pytest.mark.parametrize("bits", [3, 6])
@pytest.mark.parametrize("columns", [40, 128, 200, 256, 300])
def test_solve_equals_naive_gptq(columns: int, bits: int) -> None:
    weights = randn(2, 24, columns, seed=columns, dtype=torch.float32)
    hessians = torch.stack([correlated_hessian(columns, seed) for seed in (0, 10)])
    scales = row_scales(weights, bits, 12.85 if bits == 6 else 3.0)
    integers = solve(weights, factor_hessians(hessians, 0.01), scales, bits)
    assert integers.shape == weights.shape
    for matrix, hessian, scale, got in zip(weights, hessians, scales, integers, strict=True):
        expected = naive_gptq(
            matrix.double().numpy(),
            damped(hessian, 0.01),
            np.argsort(-np.diag(hessian.numpy()), kind="stable"),
            scale.double().numpy(),
            2 ** (bits - 1) - 1,
            got.double().numpy(),
        )
        difference = np.abs(got.numpy() - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize(("columns", "share"), [(96, 0.0), (200, 0.01)])
def test_a_batch_is_solved_as_one_by_one(columns: int, share: float) -> None:
    """Bit for bit within a block of 128 columns; beyond it a matrix product may round apart."""
    weights = randn(3, 16, columns, seed=0, dtype=torch.float32)
    hessians = torch.stack([correlated_hessian(columns, seed) for seed in (0, 10, 20)])
    scales = row_scales(weights, 4, 4.0)
    together = solve(weights, factor_hessians(hessians, 0.01), scales, 4)
    for i in range(3):
        one = slice(i, i + 1)
        alone = solve(weights[one], factor_hessians(hessians[one], 0.01), scales[one], 4)
        assert float((alone[0] != together[i]).double().mean()) <= share


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_gptq_is_better_than_nearest_on_correlated_inputs(bits: int) -> None:
    clip = {2: 1.5, 4: 4.0, 6: 12.85}[bits]
    weights = randn(4, 16, 150, seed=3, dtype=torch.float32)
    hessians = torch.stack([correlated_hessian(150, seed) for seed in range(4)])
    scales = row_scales(weights, bits, clip)
    integers = solve(weights, factor_hessians(hessians, 0.01), scales, bits)
    most = 2 ** (bits - 1) - 1
    for matrix, hessian, scale, got in zip(weights, hessians, scales, integers, strict=True):
        wide, column = matrix.double().numpy(), scale.double().numpy()[:, None]
        nearest = np.clip(np.rint(wide / column), -most, most)
        gptq_error = quadratic_error(wide, got.numpy() * column, hessian.numpy())
        assert gptq_error < 0.8 * quadratic_error(wide, nearest * column, hessian.numpy())


def test_gptq_with_a_diagonal_hessian_is_rounding_to_nearest() -> None:
    weights = randn(1, 16, 150, seed=0, dtype=torch.float32)
    scales = row_scales(weights, 6, 12.85)
    hessian = torch.diag(torch.linspace(1, 5, 150, dtype=torch.float64))
    integers = solve(weights, factor_hessians(hessian[None], 0.01), scales, 6)
    expected = round_to_integers(weights[0], scales[0][:, None], 6)
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


def test_hopeless_hessians_are_refused() -> None:
    hopeless = torch.tensor([[1.0, 1e6], [1e6, 1.0]])  # eigenvalue -1e6 mean diagonals
    with pytest.raises(ValueError, match="not positive definite"):
        factor_hessians(torch.stack([torch.eye(2), hopeless]), 0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hessians_of_a_diverged_model_are_refused(value: float) -> None:
    hessians = torch.stack([torch.eye(3), torch.eye(3)])
    hessians[1, 0, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        factor_hessians(hessians, 0.01)


def test_dead_columns_are_rounded_to_nearest_and_disturb_nothing() -> None:
    columns, dead = 140, [0, 7, 139]
    alive = [c for c in range(columns) if c not in dead]
    hessian = correlated_hessian(columns, seed=0)
    hessian[dead] = 0
    hessian[:, dead] = 0
    weights = randn(1, 12, columns, seed=1, dtype=torch.float32)
    scales = row_scales(weights, 4, 4.0)
    factor = factor_hessians(hessian[None], 0.01)
    assert factor.order_MC[0, -3:].tolist() == dead, "last, in a stable order"
    integers = solve(weights, factor, scales, 4)[0]
    nearest = round_to_integers(weights[0], scales[0][:, None], 4)
    assert torch.equal(integers[:, dead].float(), nearest[:, dead])
    expected = naive_gptq(
        weights[0].double().numpy(),
        damped(hessian, 0.01),
        np.argsort(-np.diag(hessian.numpy()), kind="stable"),
        scales[0].double().numpy(),
        7,
        integers.double().numpy(),
    )
    assert (integers.numpy()[:, alive] != expected[:, alive]).mean() < 0.001


def test_a_hessian_of_zeros_gives_nearest() -> None:
    weights = randn(1, 4, 10, seed=1, dtype=torch.float32)
    scales = row_scales(weights, 6, 12.85)
    integers = solve(weights, factor_hessians(torch.zeros(1, 10, 10), 0.01), scales, 6)
    assert torch.equal(integers[0].float(), round_to_integers(weights[0], scales[0][:, None], 6))


# Report


def test_report_equals_its_formulas() -> None:
    weights = randn(10, 60, seed=0, dtype=torch.float32)
    hessian = correlated_hessian(60, seed=1)
    scales = row_scales(weights[None], 4, 2.0)[0]
    integers = solve(weights[None], factor_hessians(hessian[None], 0.01), scales[None], 4)[0]
    measured = report(weights, hessian.float(), integers, scales, 4, 0.25)

    wide, column = weights.double().numpy(), scales.double().numpy()[:, None]
    h = hessian.float().double().numpy()
    whole = np.trace(wide @ h @ wide.T)
    nearest = np.clip(np.rint(wide / column), -7, 7) * column
    gptq_share = quadratic_error(wide, integers.numpy() * column, h) / whole
    assert measured.gptq_error == pytest.approx(gptq_share, rel=1e-9)
    nearest_share = quadratic_error(wide, nearest, h) / whole
    assert measured.nearest_error == pytest.approx(nearest_share, rel=1e-9)
    _, counts = np.unique(integers.numpy(), return_counts=True)
    shares = counts / counts.sum()
    assert measured.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-9)
    at_ends = (np.abs(integers.numpy()) == 7).mean()
    assert at_ends > 0.01
    assert measured.clipped_share == pytest.approx(at_ends, rel=1e-9)
    assert measured.damping == 0.25


def test_report_of_exact_and_constant_integers() -> None:
    integers = torch.full((2, 8), 3, dtype=torch.int8)
    scales = torch.tensor([0.5, 2.0], dtype=torch.float16)
    measured = report(
        3 * scales[:, None].float().expand(2, 8), torch.eye(8), integers, scales, 4, 0
    )
    assert measured[:4] == (0.0, 0.0, 0.0, 0.0)
    dead = report(torch.ones(2, 8), torch.zeros(8, 8), integers, scales, 4, 0)
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
        reference = reference_forward(in_numpy(model), config, batch, *orders[recurrent])
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


# quantize()


def test_quantize_a_model() -> None:
    """Also with block matrices in the shape of the embedding, but not with its bits."""
    config = small_config(num_layers=5, width=32, mlp_ratio=10, vocab_size=320)
    model = random_model(config, seed=0, dtype=torch.float32)
    order = layer_order(config, recurrent=True)
    hessians = collect_hessians(model, order, [random_tokens(config, 16, 16, s) for s in range(2)])
    pack = PackConfig(matrix_clip=6.0, embedding_clip=16.0)
    shapes = layout(config)[0]
    assert shapes["embedding"] == shapes["blocks.0.up"]
    matrices = {name: model.get_parameter(name).detach() for name in shapes}
    before = {name: matrix.clone() for name, matrix in matrices.items()}

    quantized, dampings = quantize(matrices, hessians, pack)

    blocks = [f"blocks.{i}.{name}" for i in range(5) for name in MATRIX_NAMES]
    assert list(quantized) == ["embedding", *blocks]
    assert dampings == pytest.approx(dict.fromkeys(quantized, 0.01), rel=1e-12)
    for name, result in quantized.items():
        bits, clip, most = (8, 16.0, 127) if name == "embedding" else (6, 6.0, 31)
        weights = before[name]
        assert torch.equal(matrices[name], weights), "the weights are left as they were"
        assert result.integers.shape == weights.shape == shapes[name]
        assert result.integers.dtype == torch.int8
        assert result.scales.shape == (len(weights),)
        assert result.scales.dtype == torch.float16
        assert int(result.integers.abs().max()) <= most
        assert float(result.integers.double().std()) == pytest.approx(most / clip, rel=0.1)
        # In the batch of its shape it became what it becomes by itself, with its own Hessian.
        hessian = hessians[input_of(name)][None]
        scales = row_scales(weights[None], bits, clip)
        alone = solve(weights[None], factor_hessians(hessian, 0.01), scales, bits)[0]
        assert torch.equal(result.scales, scales[0])
        assert float((alone != result.integers).double().mean()) < 0.01
        # The output on the calibration inputs is closer than with rounding to nearest, which
        # moves every weight by a uniform part of a step: rms step / sqrt(12).
        wide, step = weights.double().numpy(), result.scales.double().numpy()[:, None]
        rebuilt = result.dequantize().double().numpy()
        np.testing.assert_allclose(rebuilt, result.integers.numpy() * step, rtol=1e-6)
        nearest = np.clip(np.rint(wide / step), -most, most) * step
        h = hessian[0].double().numpy()
        gptq_error = quadratic_error(wide, rebuilt, h)
        assert gptq_error < quadratic_error(wide, nearest, h)
        expected = float((step**2).mean() / 12)
        assert np.mean((nearest - wide) ** 2) == pytest.approx(expected, rel=0.2)
        assert np.mean((rebuilt - wide) ** 2) < 4 * expected


def test_quantize_reports_raised_damping_by_name() -> None:
    config = small_config(num_layers=4)
    model = random_model(config, seed=0, dtype=torch.float32)
    batch = random_tokens(config, 16, 16)
    hessians = collect_hessians(model, layer_order(config, recurrent=True), [batch])
    bad = hessians["blocks.2.attention"]
    bad -= 0.3 * bad.diagonal().mean() * torch.eye(len(bad))  # its least eigenvalues were near 0
    least = float(torch.linalg.eigvalsh(bad.double())[0] / bad.diagonal().double().mean())
    pack = replace(PackConfig(), damping=0.02)
    matrices = {name: model.get_parameter(name).detach() for name in layout(config)[0]}
    quantized, dampings = quantize(matrices, hessians, pack)
    assert quantized.keys() == matrices.keys()
    raised = {name for name, damping in dampings.items() if damping > 0.02}
    assert raised == {f"blocks.2.{name}" for name in ("query", "key", "value")}
    for name in raised:
        assert dampings[name] > -least  # enough to be positive definite, in tenfolds
        assert np.log10(dampings[name] / 0.02) == pytest.approx(
            round(np.log10(-least / 0.02) + 0.5)
        )


def test_quantize_refuses_a_diverged_model() -> None:
    config = small_config(num_layers=4)
    model = random_model(config, seed=0, dtype=torch.float32)
    hessians = collect_hessians(
        model, layer_order(config, recurrent=True), [random_tokens(config, 4, 16)]
    )
    matrices = {name: model.get_parameter(name).detach().clone() for name in layout(config)[0]}
    matrices["blocks.1.up"][3, 4] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        quantize(matrices, hessians, PackConfig())
