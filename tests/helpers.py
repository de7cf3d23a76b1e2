"""Small models, and a second implementation of the model as a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.compress.entropy import Encoder, Integers
from paramgolf.config import ModelConfig, RunConfig, ScoreConfig, TrainConfig
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.roles import MATRIX_NAMES, role

Array = NDArray[np.float64]

SMALL_MODEL = ModelConfig(
    vocab_size=300,
    num_layers=6,
    width=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_ratio=2,
    seq_len=16,
    rotary_dims=4,
    query_gain=1.5,
    logit_softcap=8.0,  # small enough to bend the logits of random models
    loop_first=2,
    loop_last=3,
    loop_visits=3,
    parallel_from=4,
)


def small_config(**changes: Any) -> ModelConfig:
    """A model of 6 layers and 32 channels, with `changes`."""
    return replace(SMALL_MODEL, **changes)


def small_run_config(model: ModelConfig | None = None, **train_changes: Any) -> RunConfig:
    """A run of the small model, 4 sequences per step in micro-batches of 2."""
    model = model or small_config()
    train = TrainConfig(
        max_steps=10,
        batch_tokens=4 * model.seq_len,
        micro_batch_tokens=2 * model.seq_len,
        momentum_warmup_steps=3,
        ema_decay=0.9,
    )
    score = ScoreConfig(stride=model.seq_len // 2, batch_tokens=4 * model.seq_len)
    return RunConfig(model=model, train=replace(train, **train_changes), score=score)


def random_model(config: ModelConfig, seed: int, dtype: torch.dtype = torch.float64) -> GPT:
    """A model without neutral parameters, not even those initialised to 0 or 1."""
    model = GPT(config, dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            kind = role(name)
            if kind in MATRIX_NAMES:
                values /= parameter.size(1) ** 0.5
            elif kind == "stream_mix":
                values = 0.3 * values + torch.tensor([[0.9], [0.3]], dtype=torch.float64)
            elif kind in ("query_gain", "attention_scale", "mlp_scale", "skip_weight"):
                values = 1 + 0.4 * values
            parameter.copy_(values)
    return model


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_tokens(config: ModelConfig, rows: int, columns: int, seed: int = 0) -> Tensor:
    """Token ids, (rows, columns) int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (rows, columns), generator=generator)


def in_numpy(model: GPT) -> dict[str, Array]:
    """All parameters of the model in float64, by name."""
    return {
        name: parameter.detach().double().numpy().copy()
        for name, parameter in model.named_parameters()
    }


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    """Return the message of an error for users, which is one line."""
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


class Reference(NamedTuple):
    """The results of the second implementation."""

    stream: Array
    """The final normalised stream, (B, T, D)."""
    inputs: dict[str, list[Array]]
    """By "blocks.<i>.<attention, output, up or down>": what the matrices multiply, (T, C) for
    every sequence and visit."""


def rms_norm(x: Array) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)


def reference_forward(
    weights: dict[str, Array],
    config: ModelConfig,
    tokens_BT: Tensor,
    encoder: Sequence[int],
    decoder: Sequence[int],
) -> Reference:
    """The forward pass in numpy, sequence by sequence, head by head, position by position."""
    inputs: dict[str, list[Array]] = {}
    streams = []
    for tokens_T in tokens_BT.numpy():
        x0 = rms_norm(weights["embedding"][tokens_T])
        x = x0
        outputs = []
        for layer in encoder:
            x = _reference_block(weights, config, layer, x, x0, inputs)
            outputs.append(x)
        for position, layer in enumerate(decoder):
            if position < len(encoder):  # the last encoder output meets the first decoder block
                skip = weights["skip_weight"][position] * outputs[len(encoder) - 1 - position]
                keep = 1 / (1 + np.exp(-weights["skip_gate"][position]))
                x = keep * x + (1 - keep) * skip
            x = _reference_block(weights, config, layer, x, x0, inputs)
        streams.append(rms_norm(x))
    return Reference(np.stack(streams), inputs)


def _reference_block(
    weights: dict[str, Array],
    config: ModelConfig,
    layer: int,
    x: Array,
    x0: Array,
    inputs: dict[str, list[Array]],
) -> Array:
    def weight(name: str) -> Array:
        return weights[f"blocks.{layer}.{name}"]

    def note(name: str, value: Array) -> Array:
        inputs.setdefault(f"blocks.{layer}.{name}", []).append(value)
        return value

    mix = weight("stream_mix")
    x = mix[0] * x + mix[1] * x0
    attention_in = note("attention", rms_norm(x) / np.sqrt(layer + 1))
    heads = note("output", reference_attention(attention_in, config, weight))
    attended = weight("attention_scale") * (heads @ weight("output").T)
    if layer >= config.parallel_from:
        up_in = attention_in
    else:
        up_in = rms_norm(x + attended) / np.sqrt(layer + 1)
    hidden = note("up", up_in) @ weight("up").T
    hidden = note("down", np.where(hidden > 0, hidden, 0.5 * hidden) ** 2)
    return x + attended + weight("mlp_scale") * (hidden @ weight("down").T)


def reference_attention(x_TD: Array, config: ModelConfig, weight: Any) -> Array:
    """The input of the output matrix: all heads concatenated, (T, D)."""
    T, d = len(x_TD), config.head_dim
    base = config.rotary_base
    if config.seq_len < T:
        base *= (T / config.seq_len) ** (config.rotary_dims / (config.rotary_dims - 2))
    result = np.zeros((T, config.width))
    for head in range(config.num_heads):
        group = head // (config.num_heads // config.num_kv_heads)
        of_head, of_group = slice(head * d, head * d + d), slice(group * d, group * d + d)
        queries = rms_norm(x_TD @ weight("query")[of_head].T)
        keys = rms_norm(x_TD @ weight("key")[of_group].T)
        values = x_TD @ weight("value")[of_group].T
        queries = rotate_rows(queries, config.rotary_dims, base) * weight("query_gain")[head]
        keys = rotate_rows(keys, config.rotary_dims, base)
        for t in range(T):
            scores = np.array([queries[t] @ keys[s] for s in range(t + 1)]) / np.sqrt(d)
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            y = sum(share * values[s] for s, share in enumerate(shares))
            own = values[t]
            result[t, of_head] = y - (y @ own) / (own @ own) * own
    return result


def rotate_rows(x_Td: Array, dims: int, base: float) -> Array:
    """Row t rotated by t * base^(-2i/dims) in the planes (i, i + dims / 2), as complex numbers."""
    half = dims // 2
    frequencies = base ** (-2.0 * np.arange(half) / dims)
    turns = np.exp(1j * np.arange(len(x_Td))[:, None] * frequencies)
    turned = (x_Td[:, :half] + 1j * x_Td[:, half:dims]) * turns
    return np.concatenate([turned.real, turned.imag, x_Td[:, dims:]], axis=1)


def reference_nats(
    stream_BTD: Array, embedding_VD: Array, targets_BT: Tensor, softcap: float
) -> Array:
    """Minus the log-probability of every target, (B, T)."""
    logits = softcap * np.tanh(stream_BTD @ embedding_VD.T / softcap)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return -np.log(np.take_along_axis(probabilities, targets_BT.numpy()[..., None], -1)[..., 0])


class FakeClock:
    """In place of a module's `time`: it moves when told, and by `tick` seconds at every reading."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 1000.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


class MeasuringEncoder(Encoder):
    """An encoder that adds up the information content of its symbols, in bits."""

    def __init__(self) -> None:
        super().__init__()
        self.ideal_bits = 0.0

    def code(
        self, probabilities: NDArray[np.float64], count: int, known: Integers | None
    ) -> Integers:
        shares = probabilities / probabilities.sum()
        self.ideal_bits -= float(np.log2(shares)[known].sum())
        return super().code(probabilities, count, known)

    def code_below(self, limits: Integers, known: Integers | None) -> Integers:
        self.ideal_bits += float(np.log2(np.maximum(2, limits)).sum())
        return super().code_below(limits, known)
