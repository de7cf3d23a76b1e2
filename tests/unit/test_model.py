"""The model against a second implementation in numpy (tests/reference.py) and closed forms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from paramgolf.model.attention import (
    causal_attention,
    exclude_self_value,
    rotary_tables,
    rotate,
)
from paramgolf.model.gpt import GPT, num_parameters
from paramgolf.model.losses import SoftcappedCrossEntropy, target_nats
from paramgolf.model.order import layer_order, num_skips
from paramgolf.model.past import Past
from paramgolf.model.roles import MATRIX_NAMES, BlockInputs
from paramgolf.recipes import RECIPES
from tests import reference
from tests.helpers import (
    in_numpy,
    random_model,
    random_tokens,
    small_config,
)
from tests.reference import rms_norm, rotate_rows

# Changes to small_config, recurrence, and the layer order (encoder, decoder) written out by hand.
Variant = tuple[dict[str, Any], bool, list[int], list[int]]
VARIANTS: dict[str, Variant] = {
    "recurrent": ({}, True, [0, 1, 2, 3, 2], [3, 2, 3, 4, 5]),
    "plain": ({}, False, [0, 1, 2], [3, 4, 5]),
    # All blocks sequential; an odd number of visits, so that the last decoder block has no skip.
    "sequential-recurrent": (
        {"num_layers": 5, "loop_first": 1, "loop_last": 2, "loop_visits": 2, "parallel_from": 5},
        True,
        [0, 1, 2],
        [1, 2, 3, 4],
    ),
    "sequential-plain": ({"num_layers": 5, "parallel_from": 5}, False, [0, 1], [2, 3, 4]),
    # All blocks parallel, one visit, a key/value head for every head, all dimensions rotated.
    "parallel": (
        {"parallel_from": 0, "loop_visits": 1, "num_kv_heads": 4, "rotary_dims": 8},
        True,
        [0, 1, 2],
        [3, 4, 5],
    ),
    # The loop is the whole model, one key/value head for all, every block looped.
    "all-looped": (
        {"num_layers": 3, "loop_first": 0, "num_kv_heads": 1, "loop_last": 2, "parallel_from": 1},
        True,
        [0, 1, 2, 0],
        [1, 2, 0, 1, 2],
    ),
}

each_variant = pytest.mark.parametrize("variant", list(VARIANTS.values()), ids=list(VARIANTS))


# Size and layer order


def test_record_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPT(RECIPES["record"][1].model)
    assert num_parameters(model) == 35_944_536


def test_record_layer_orders() -> None:
    config = RECIPES["record"][1].model
    on, off = layer_order(config, recurrent=True), layer_order(config, recurrent=False)
    assert list(on.encoder) == [0, 1, 2, 3, 4, 5, 3, 4]
    assert list(on.decoder) == [5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert list(off.encoder) == [0, 1, 2, 3, 4]
    assert list(off.decoder) == [5, 6, 7, 8, 9, 10]
    assert num_skips(config) == 8
    with torch.device("meta"):
        model = GPT(config)
    assert model.skip_weight.shape == model.skip_gate.shape == (8, 512)


@each_variant
def test_layer_orders_of_small_models(variant: Variant) -> None:
    changes, recurrent, encoder, decoder = variant
    config = small_config(**changes)
    order = layer_order(config, recurrent)
    assert (list(order.encoder), list(order.decoder)) == (encoder, decoder)
    if recurrent:
        assert reference.visits(config) == (encoder, decoder)


# The whole forward pass


@each_variant
@pytest.mark.parametrize("length", [16, 24], ids=["trained-length", "longer"])
def test_forward_and_losses_equal_the_reference(variant: Variant, length: int) -> None:
    changes, recurrent, encoder, decoder = variant
    config = small_config(**changes)
    model = random_model(config, seed=1)
    tokens = random_tokens(config, 2, length + 1)
    expected = reference.forward(in_numpy(model), config, tokens[:, :-1], encoder, decoder)
    order = layer_order(config, recurrent)

    stream = model(tokens[:, :-1], order)
    nats = model.target_nats(stream, tokens[:, 1:])

    np.testing.assert_allclose(stream.detach().numpy(), expected.stream, rtol=0, atol=1e-10)
    expected_nats = reference.nats(
        expected.stream, in_numpy(model)["embedding"], tokens[:, 1:], config.logit_softcap
    )
    np.testing.assert_allclose(nats.detach().numpy(), expected_nats, rtol=0, atol=1e-10)
    assert model.mean_nats(tokens, order).item() == pytest.approx(expected_nats.mean(), abs=1e-10)


@pytest.mark.parametrize("recurrent", [True, False])
def test_float32_losses_equal_the_reference(recurrent: bool) -> None:
    """In the dtype in which CPUs train, from int32 tokens as in the trainer."""
    config = small_config()
    model = random_model(config, seed=2, dtype=torch.float32)
    tokens = random_tokens(config, 2, 17)
    encoder, decoder = VARIANTS["recurrent" if recurrent else "plain"][2:]
    expected = reference.forward(in_numpy(model), config, tokens[:, :-1], encoder, decoder)
    stream = model(tokens[:, :-1].int(), layer_order(config, recurrent))
    nats = model.target_nats(stream, tokens[:, 1:].int())
    assert stream.dtype == nats.dtype == torch.float32
    expected_nats = reference.nats(
        expected.stream, in_numpy(model)["embedding"], tokens[:, 1:], config.logit_softcap
    )
    np.testing.assert_allclose(nats.detach().numpy(), expected_nats, rtol=0, atol=1e-3)


@pytest.mark.parametrize("recurrent", [True, False])
def test_gradients_equal_finite_differences(recurrent: bool) -> None:
    """For each parameter separately: its gradient along a random direction."""
    config = small_config(width=16, num_heads=2, num_kv_heads=1)
    model = random_model(config, seed=3)
    tokens = random_tokens(config, 2, 9)
    order = layer_order(config, recurrent)
    model.mean_nats(tokens, order).backward()
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        assert parameter.grad is not None
        slope = float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter += step * direction
            above = float(model.mean_nats(tokens, order))
            parameter -= 2 * step * direction
            below = float(model.mean_nats(tokens, order))
            parameter += step * direction
        assert slope == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-8), name
        assert slope != 0, name


# Causality


@each_variant
@pytest.mark.parametrize("position", [0, 7, 15])
def test_a_token_changes_nothing_before_it(variant: Variant, position: int) -> None:
    changes, recurrent, _, _ = variant
    config = small_config(**changes)
    model = random_model(config, seed=4)
    order = layer_order(config, recurrent)
    tokens = random_tokens(config, 2, 16)
    changed = tokens.clone()
    changed[0, position] = (changed[0, position] + 1) % config.vocab_size
    with torch.no_grad():
        difference = (model(tokens, order) - model(changed, order)).abs().amax(dim=-1)
    assert float(difference[0, :position].sum()) <= 1e-12
    assert float(difference[1].max()) <= 1e-12, "the other sequence of the batch"
    assert bool((difference[0, position:] > 1e-9).all()), (
        "itself and all positions that attend to it"
    )


# The parts


def brute_force_attention(q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor) -> Tensor:
    """Causal softmax attention of one sequence, (T, H, d)."""
    T, H, d = q_THd.shape
    y = torch.zeros_like(q_THd)
    for head in range(H):
        group = head // (H // k_TKd.size(1))
        for t in range(T):
            shares = (k_TKd[: t + 1, group] @ q_THd[t, head] / math.sqrt(d)).softmax(dim=0)
            y[t, head] = shares @ v_TKd[: t + 1, group]
    return y


def test_exclude_self_value_removes_exactly_the_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 5, 2, 6, generator=generator, dtype=torch.float64)
    result = exclude_self_value(y, v)
    for b, t, head in np.ndindex(2, 5, 4):
        own = v[b, t, head // 2]
        expected = y[b, t, head] - (y[b, t, head] @ own) / (own @ own) * own
        torch.testing.assert_close(result[b, t, head], expected, rtol=0, atol=1e-12)


def test_exclude_self_value_of_a_zero_value_changes_nothing() -> None:
    y = torch.randn(1, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exclude_self_value(y, torch.zeros(1, 3, 1, 4)), y)


def test_attention_in_the_model_is_orthogonal_to_the_own_value() -> None:
    """Every head's output, as the output matrix sees it, in a run of the whole model."""
    config = small_config()
    model = random_model(config, seed=5)
    d = config.head_dim
    visits = 0

    def observe(layer: int, inputs: BlockInputs) -> None:
        nonlocal visits
        visits += 1
        heads = inputs.output.unflatten(-1, (config.num_heads, d))
        values = (inputs.attention @ model.block_list()[layer].value.T).unflatten(-1, (-1, d))
        for head in range(config.num_heads):
            own = values[:, :, head // 2]
            cosine = F.cosine_similarity(heads[:, 1:, head], own[:, 1:], dim=-1)
            assert float(cosine.abs().max()) < 1e-10
        # The first position attends only to itself, and that is removed.
        assert float(heads[:, 0].abs().max()) < 1e-12
        assert float(heads[:, 1:].abs().amax(dim=-1).min()) > 1e-3

    with torch.no_grad():
        model(random_tokens(config, 2, 16), layer_order(config, recurrent=True), observe)
    assert visits == 10


def test_rotation_turns_pairs_and_leaves_the_rest() -> None:
    x = torch.randn(2, 9, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cos, sin = rotary_tables(9, 4, 500.0, 9, torch.device("cpu"), torch.float64)
    result = rotate(x, cos, sin)
    for b, head in np.ndindex(2, 3):
        expected = rotate_rows(x[b, :, head].numpy(), 4, 500.0)
        np.testing.assert_allclose(result[b, :, head].numpy(), expected, rtol=0, atol=1e-13)
    assert torch.equal(result[..., 4:], x[..., 4:])
    assert torch.equal(result[:, 0], x[:, 0])


def test_rotated_products_depend_on_the_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    length = 12
    cos, sin = rotary_tables(length, 6, 100.0, length, torch.device("cpu"), torch.float64)
    turned_q = rotate(q.expand(1, length, 1, 8), cos, sin)[0, :, 0]
    turned_k = rotate(k.expand(1, length, 1, 8), cos, sin)[0, :, 0]
    products = turned_q @ turned_k.T
    for distance in range(-length + 1, length):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-12)
    assert float(products[0].std()) > 0.1  # and they do depend on the distance


@pytest.mark.parametrize("dims", [4, 16])
def test_rotary_base_grows_beyond_the_training_length(dims: int) -> None:
    train_len, length, base = 16, 40, 10_000.0
    cos, sin = rotary_tables(length, dims, base, train_len, torch.device("cpu"), torch.float64)
    scaled = base * (length / train_len) ** (dims / (dims - 2))
    for t, pair in np.ndindex(length, dims // 2):
        angle = t * scaled ** (-2 * pair / dims)
        assert float(cos[t, pair]) == pytest.approx(math.cos(angle), abs=1e-12)
        assert float(sin[t, pair]) == pytest.approx(math.sin(angle), abs=1e-12)
    # The purpose of the scaling: the slowest pair turns as far over `length` as over `train_len`
    # without it, so that with the ratio 40 / 16 position 5 is where position 2 was.
    unscaled = rotary_tables(train_len, dims, base, train_len, torch.device("cpu"), torch.float64)
    assert float(sin[5, -1]) == pytest.approx(float(unscaled[1][2, -1]), rel=1e-12)


def test_rotary_tables_up_to_the_training_length_are_one_table() -> None:
    device = torch.device("cpu")
    whole = rotary_tables(16, 4, 100.0, 16, device, torch.float64)
    short = rotary_tables(7, 4, 100.0, 16, device, torch.float64)
    assert torch.equal(whole[0][:7], short[0])
    assert torch.equal(whole[1][:7], short[1])
    for dtype in (torch.bfloat16, torch.float32):  # never computed in less than float32
        cos, sin = rotary_tables(16, 4, 100.0, 16, device, dtype)
        assert cos.dtype == sin.dtype == torch.float32
        torch.testing.assert_close(cos.double(), whole[0], rtol=0, atol=1e-7)


def test_skips_pair_the_last_encoder_output_with_the_first_decoder_block() -> None:
    """With blocks that only add x0, each in one channel, the stream has a closed form."""
    config = small_config()
    model = random_model(config, seed=6)
    with torch.no_grad():
        for layer, block in enumerate(model.block_list()):
            block.output.zero_()
            block.down.zero_()
            block.stream_mix[0] = 1
            block.stream_mix[1] = 0
            block.stream_mix[1, layer] = 1
    tokens = random_tokens(config, 1, 16)
    x0 = rms_norm(in_numpy(model)["embedding"][tokens.numpy()])
    for recurrent in (True, False):
        encoder, decoder = VARIANTS["recurrent" if recurrent else "plain"][2:]
        weight, gate = in_numpy(model)["skip_weight"], in_numpy(model)["skip_gate"]
        keep = 1 / (1 + np.exp(-gate))
        # The stream is `factor * x0` at all times, channel by channel.
        after = [
            np.array([1.0 + encoder[: place + 1].count(channel) for channel in range(32)])
            for place in range(len(encoder))
        ]
        factor = after[-1]
        for row, (layer, skipped) in enumerate(zip(decoder, reversed(after), strict=False)):
            factor = keep[row] * factor + (1 - keep[row]) * weight[row] * skipped
            factor = factor + (np.arange(32) == layer)
        stream = model(tokens, layer_order(config, recurrent)).detach().numpy()
        np.testing.assert_allclose(stream, rms_norm(factor * x0), rtol=0, atol=1e-12)


# The loss


def loss_case(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (5,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def test_loss_passes_gradcheck() -> None:
    hidden, weight, targets = loss_case()

    def loss(hidden: Tensor, weight: Tensor) -> Any:
        return SoftcappedCrossEntropy.apply(hidden, weight, targets, 4.0)

    assert torch.autograd.gradcheck(loss, (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradients_equal_cross_entropy_of_softcapped_logits(dtype: torch.dtype) -> None:
    hidden, weight, targets = loss_case()
    hidden, weight = (t.detach().to(dtype).requires_grad_() for t in (hidden, weight))
    weights_of_targets = torch.linspace(-1, 2, 5, dtype=dtype)
    nats = target_nats(hidden, weight, targets, 4.0)
    nats_gradients = torch.autograd.grad(nats @ weights_of_targets, (hidden, weight))
    logits = 4.0 * torch.tanh(hidden @ weight.T / 4.0)
    expected = F.cross_entropy(logits, targets, reduction="none")
    expected_gradients = torch.autograd.grad(expected @ weights_of_targets, (hidden, weight))
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype is torch.float64 else 1e-5}
    torch.testing.assert_close(nats, expected, **tolerance)
    for gradient, wanted in zip(nats_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, **tolerance)


def test_bfloat16_loss_is_computed_in_float32_from_rounded_products() -> None:
    hidden, weight, targets = loss_case()
    hidden, weight = hidden.detach().bfloat16(), weight.detach().bfloat16()
    nats = target_nats(hidden, weight, targets, 4.0)
    logits = 4.0 * torch.tanh((hidden @ weight.T).float() / 4.0)
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats, F.cross_entropy(logits, targets, reduction="none"))


def test_softcap_bounds_the_logits() -> None:
    """Products of 1e6 saturate: logits are +-softcap, so that the losses are known."""
    hidden = torch.tensor([[1.0]], dtype=torch.float64).repeat(2, 1)
    weight = torch.tensor([[1e6], [-1e6], [-1e6]], dtype=torch.float64)
    nats = target_nats(hidden, weight, torch.tensor([0, 1]), 5.0)
    others = math.log1p(2 * math.exp(-10))
    assert nats.tolist() == pytest.approx([others, others + 10], rel=1e-12)


def test_a_frozen_weight_gets_no_gradient() -> None:
    """Its matrix product is left out of the backward pass."""
    gradients, operations = [], []
    for trained in (True, False):
        hidden, weight, targets = loss_case()
        weight.requires_grad_(trained)
        nats = target_nats(hidden, weight, targets, 4.0)
        with FlopCounterMode(display=False) as counter:
            nats.sum().backward()
        operations.append(counter.get_total_flops())
        gradients.append(hidden.grad)
        assert (weight.grad is not None) == trained
    product = 2 * 5 * 7 * 4  # additions and multiplications of tokens, vocabulary, width
    assert operations == [2 * product, product]
    assert torch.equal(*gradients)


def test_freezing_the_embedding_leaves_the_other_gradients() -> None:
    config = small_config()
    tokens = random_tokens(config, 2, 17)
    model, frozen = random_model(config, seed=7), random_model(config, seed=7)
    frozen.embedding.requires_grad_(False)
    for each in (model, frozen):
        each.mean_nats(tokens, layer_order(config, recurrent=True)).backward()
    assert frozen.embedding.grad is None
    others = dict(model.named_parameters())
    assert others["embedding"].grad is not None
    for name, parameter in frozen.named_parameters():
        if name != "embedding":
            torch.testing.assert_close(parameter.grad, others[name].grad, rtol=0, atol=1e-14)


# Initialisation


def initialised(seed: int, dtype: torch.dtype = torch.float32) -> GPT:
    model = GPT(small_config(), dtype)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def test_initialisation_reaches_every_parameter() -> None:
    model = initialised(0)
    for name, parameter in model.named_parameters():
        assert bool(parameter.isfinite().all()), name
    for block in model.block_list():
        for name in ("query", "key"):  # at most as many rows as columns: orthonormal rows
            matrix = getattr(block, name).double()
            gram, eye = matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64)
            torch.testing.assert_close(gram, eye, rtol=0, atol=1e-6)
        gram = block.up.double().T @ block.up.double()
        torch.testing.assert_close(gram, torch.eye(32, dtype=torch.float64), rtol=0, atol=1e-6)
        assert not block.output.any()
        assert not block.down.any()
        assert torch.equal(block.query_gain, torch.full((4,), 1.5))
        assert bool((block.stream_mix[0] == 1).all())
        assert not block.stream_mix[1].any()
    assert float(model.embedding.detach().std()) == pytest.approx(0.005, rel=0.05)


def test_initialisation_follows_the_generator() -> None:
    first, same, other = initialised(0), initialised(0), initialised(1)
    wide = initialised(0, torch.float64)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name)), name
        assert torch.equal(parameter, wide.get_parameter(name).float()), name
    assert not torch.equal(first.embedding, other.embedding)
    for name in MATRIX_NAMES[:3]:
        matrices = [getattr(model.block_list()[0], name) for model in (first, other)]
        assert not torch.equal(*matrices)
    assert not torch.equal(first.block_list()[0].query, first.block_list()[1].query)


@pytest.mark.parametrize("recurrent", [True, False])
def test_a_new_model_passes_the_embedding_through(recurrent: bool) -> None:
    config = small_config()
    model = initialised(0, torch.float64)
    tokens = random_tokens(config, 2, 16)
    x0 = rms_norm(in_numpy(model)["embedding"][tokens.numpy()])
    stream = model(tokens, layer_order(config, recurrent)).detach().numpy()
    np.testing.assert_allclose(stream, rms_norm(x0), rtol=0, atol=1e-12)


# Observation


@each_variant
def test_observed_inputs_are_those_of_the_reference(variant: Variant) -> None:
    changes, recurrent, encoder, decoder = variant
    config = small_config(**changes)
    model = random_model(config, seed=8)
    tokens = random_tokens(config, 2, 16)
    expected = reference.forward(in_numpy(model), config, tokens, encoder, decoder)
    seen: dict[str, list[Tensor]] = {}
    visited: list[int] = []

    def observe(layer: int, inputs: BlockInputs) -> None:
        visited.append(layer)
        for name, x in inputs._asdict().items():
            seen.setdefault(f"blocks.{layer}.{name}", []).append(x.detach())

    order = layer_order(config, recurrent)
    stream = model(tokens, order, observe)
    assert torch.equal(stream, model(tokens, order)), "observing changes nothing"
    assert visited == encoder + decoder
    assert seen.keys() == expected.inputs.keys()
    for name, visits in seen.items():
        # The reference computes sequence by sequence, the model visit by visit.
        wanted = np.stack(expected.inputs[name]).reshape(2, len(visits), 16, -1)
        got = torch.stack(visits, dim=1).numpy()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("layer", [1, 5], ids=["sequential", "parallel"])
def test_a_block_is_recomputed_from_its_observed_inputs(layer: int) -> None:
    """The products of the matrices with their inputs rebuild the block's output."""
    config = small_config()
    model = random_model(config, seed=9)
    block = model.block_list()[layer]
    generator = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, 1, 6, config.width, generator=generator, dtype=torch.float64)
    tables = rotary_tables(6, 4, config.rotary_base, 16, torch.device("cpu"), torch.float64)
    with torch.no_grad():
        read = x, x0, *tables, block.prepared(torch.float64)
        result, inputs = block(*read, with_inputs=True)
        plain = block(*read)
        q, k, v = (
            (inputs.attention @ weight.T).unflatten(-1, (-1, config.head_dim))
            for weight in (block.query, block.key, block.value)
        )
        q, k = (F.rms_norm(t, t.shape[-1:], eps=1e-6) for t in (q, k))
        q = rotate(q, *tables) * block.query_gain[:, None]
        y = brute_force_attention(q[0], rotate(k, *tables)[0], v[0])[None]
        heads = exclude_self_value(y, v).flatten(-2)
        hidden = F.leaky_relu(inputs.up @ block.up.T, 0.5) ** 2
        rebuilt = (
            block.stream_mix[0] * x
            + block.stream_mix[1] * x0
            + block.attention_scale * (inputs.output @ block.output.T)
            + block.mlp_scale * (inputs.down @ block.down.T)
        )
    assert torch.equal(result, plain)
    torch.testing.assert_close(inputs.output, heads, rtol=0, atol=1e-12)
    torch.testing.assert_close(inputs.down, hidden, rtol=0, atol=1e-12)
    torch.testing.assert_close(result, rebuilt, rtol=0, atol=1e-12)
    assert torch.equal(inputs.up, inputs.attention) == (layer >= config.parallel_from)


# Only the last positions


@each_variant
@pytest.mark.parametrize("last", [1, 5, 15, 16, 20])
def test_the_last_positions_are_those_of_all(variant: Variant, last: int) -> None:
    changes, recurrent, encoder, decoder = variant
    config = small_config(**changes)
    model, tokens = random_model(config, seed=3), random_tokens(config, 2, 16)
    with torch.no_grad():
        found = model(tokens, layer_order(config, recurrent), last=last)
    expected = reference.forward(in_numpy(model), config, tokens, encoder, decoder).stream
    np.testing.assert_allclose(found.numpy(), expected[:, -last:], rtol=0, atol=1e-10)


def test_the_last_block_computes_no_more_than_the_last_positions_need() -> None:
    """Of other positions only keys and values. (Attention is not counted on a CPU.)"""
    config = small_config()
    model, tokens = random_model(config, seed=3), random_tokens(config, 2, 16)
    order = layer_order(config, recurrent=True)

    def operations(last: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(tokens, order, last=last)
        return counter.get_total_flops()

    block = model.block_list()[order.decoder[-1]]
    spared = (block.query, block.output, block.up, block.down)
    saved = 2 * (16 - 3) * sum(2 * matrix.numel() for matrix in spared)
    assert operations(0) - operations(3) == saved


# Chunks after a past


@pytest.mark.parametrize("num_past", [0, 1, 5])
@pytest.mark.parametrize("num_queries", [1, 2, 4])
def test_queries_after_a_past_attend_up_to_their_own_position(
    num_past: int, num_queries: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    length = num_past + num_queries
    q = torch.randn(length, 4, 6, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, length, 2, 6, generator=generator, dtype=torch.float64)
    result = causal_attention(q[None, num_past:], k[None], v[None])[0]
    expected = brute_force_attention(q, k, v)[num_past:]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@each_variant
@pytest.mark.parametrize(
    "chunks", [[1] * 16, [5, *[1] * 11], [4, 4, 4, 4], [1, 9, 2, 1, 3]], ids=str
)
def test_in_chunks_is_the_same_as_all_at_once(variant: Variant, chunks: list[int]) -> None:
    changes, recurrent, encoder, decoder = variant
    config = small_config(**changes)
    model, order = random_model(config, seed=3), layer_order(config, recurrent)
    tokens = random_tokens(config, 2, 16)
    past = Past(config, order, 2, model.embedding)
    with torch.no_grad():
        parts = [model(chunk, order, past=past) for chunk in tokens.split(chunks, dim=1)]
    expected = reference.forward(in_numpy(model), config, tokens, encoder, decoder).stream
    np.testing.assert_allclose(torch.cat(parts, dim=1).numpy(), expected, rtol=0, atol=1e-10)
    assert past.length == 16


@given(st.lists(st.integers(1, 16), min_size=1, max_size=16))
def test_in_random_chunks_is_the_same_as_all_at_once(lengths: list[int]) -> None:
    config = small_config()
    model, order = random_model(config, seed=3), layer_order(config, recurrent=True)
    tokens, past = random_tokens(config, 2, 16), Past(config, order, 2, model.embedding)
    ends = [end for end in itertools.accumulate(lengths) if end < 16]
    with torch.no_grad():
        parts = [model(c, order, past=past) for c in tokens.tensor_split(ends, dim=1)]
        expected = model(tokens, order)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-12)
