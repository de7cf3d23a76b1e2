"""Small models with random parameters, and instruments for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
        momentum_warmup_share=0.3,
        ema_share=0.5,
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
