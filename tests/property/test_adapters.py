"""Matrices of documents against a loop over documents, chunks and targets, from the description."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from paramgolf.compress.entropy import Decoder
from paramgolf.config import ScoreFirstConfig
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT, Adapt
from paramgolf.model.order import layer_order
from paramgolf.scoring.coded_text import code_tokens
from paramgolf.scoring.score_first import score_first_losses
from tests.helpers import MeasuringEncoder, in_numpy, random_model, small_config
from tests.reference import forward

CONFIG = small_config()
LENGTH = CONFIG.seq_len
ORDER = layer_order(CONFIG, recurrent=True)
PLACES = len(ORDER.encoder) + len(ORDER.decoder) + 1
SIZE = LENGTH // 4
ADAPTERS = ScoreFirstConfig(
    chunk_tokens=LENGTH, adapter_rank=3, adapter_lr=0.01, adapter_tokens=SIZE
)
BOTH = replace(ADAPTERS, optimizer="adamw", lr=3e-3)
BOS = 1


def some_documents(*lengths: int) -> np.ndarray:
    """Random documents of so many tokens, the BOS among them."""
    rng = np.random.default_rng(7)
    parts = [[BOS, *rng.integers(2, CONFIG.vocab_size, length - 1)] for length in lengths]
    return np.concatenate(parts).astype(np.uint16)


TOKENS = some_documents(1, SIZE, SIZE + 1, LENGTH + SIZE + 3, 2, 2 * SIZE, LENGTH, 1, 3)


def simulated(tokens: np.ndarray, config: ScoreFirstConfig) -> list[float]:
    """Losses, target by target: a document's matrices are new at its BOS, and learn by Adam.

    All weights learn from whole chunks of the text, when a document ends.
    """
    model = random_model(CONFIG, seed=5)
    base = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.0)
    stream = torch.from_numpy(tokens.astype(np.int64))
    count, size, learned, losses = len(tokens) - 1, config.adapter_tokens, 0, []
    begin, steps, factors, squares = 0, 0, fresh(config.adapter_rank), []
    for target in range(count):
        if tokens[target] == BOS:
            while (learned + 1) * config.chunk_tokens <= target:
                learn_all(model, base, stream, learned, config)
                learned += 1
            begin, steps, factors = target, 0, fresh(config.adapter_rank)
            squares = [torch.zeros_like(factor) for factor in factors]
        until = begin + ((target - begin) // size + 1) * size
        window = stream[None, max(begin, until - LENGTH) : target + 1]
        logits = model.logits(model(window, ORDER, adapt=adding(*factors)))[0]
        losses.append(float(cross_entropy(logits[-1:], stream[target + 1, None]).detach()))
        if target + 1 == until and until < count and tokens[until] != BOS:
            loss = cross_entropy(logits[-size:], stream[until - size + 1 : until + 1])
            steps += 1
            gradients = torch.autograd.grad(loss, factors)
            for factor, square, gradient in zip(factors, squares, gradients, strict=True):
                square.mul_(0.999).add_(0.001 * gradient**2)
                mean = square / (1 - 0.999**steps)
                factor.data -= config.adapter_lr * gradient / (mean.sqrt() + 1e-10)
    return losses


def fresh(rank: int) -> tuple[Tensor, Tensor]:
    """The matrices of a new document."""
    drawn = torch.empty(PLACES, CONFIG.width, rank)
    drawn.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    first = (drawn.double() / CONFIG.width**0.5).requires_grad_()
    return first, torch.zeros(PLACES, rank, CONFIG.width).double().requires_grad_()


def adding(first: Tensor, second: Tensor) -> Adapt:
    return lambda place, x: torch.einsum("btd,dr,re->bte", x, first[place], second[place])


def learn_all(
    model: GPT,
    base: torch.optim.Optimizer,
    stream: Tensor,
    chunk: int,
    config: ScoreFirstConfig,
) -> None:
    """One step of all weights on a chunk of the text, if the recipe has one."""
    if config.optimizer == "none":
        return
    size = config.chunk_tokens
    share = chunk / math.ceil((len(stream) - 1) / size)
    base.param_groups[0]["lr"] = config.lr * (1 + math.cos(math.pi * share)) / 2
    base.zero_grad()
    rows = stream[chunk * size : (chunk + 1) * size + 1].unfold(0, LENGTH + 1, LENGTH)
    logits = model.logits(model(rows[:, :-1], ORDER))
    cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    base.step()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("config", [ADAPTERS, BOTH])
def test_losses_match_the_simulation(config: ScoreFirstConfig, batch: int) -> None:
    model = random_model(CONFIG, seed=5)
    losses = score_first_losses(model, ORDER, config, TOKENS, [], batch * LENGTH)
    assert losses.tolist() == pytest.approx(simulated(TOKENS, config), abs=1e-7)
    unlearned = replace(config, adapter_lr=1e-12)
    fixed = score_first_losses(model, ORDER, unlearned, TOKENS, [], batch * LENGTH)
    assert (losses - fixed).abs().max() > 0.01
    weights = random_model(CONFIG, seed=5).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_what_is_added_is_where_the_description_says() -> None:
    """Against the forward pass in NumPy."""
    model, (first, second) = random_model(CONFIG, seed=5), fresh(3)
    second.data.normal_(generator=torch.Generator().manual_seed(2))
    tokens = torch.from_numpy(TOKENS[None, :LENGTH].astype(np.int64))
    found = model(tokens, ORDER, adapt=adding(first, second)).detach().numpy()
    maps = (first @ second).detach().numpy()
    expected = forward(in_numpy(model), CONFIG, tokens, ORDER.encoder, ORDER.decoder, maps).stream
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("config", [ADAPTERS, BOTH])
def test_documents_that_learn_are_coded_and_decoded(config: ScoreFirstConfig) -> None:
    model, known, count = random_model(CONFIG, seed=5), TOKENS.astype(np.int32), len(TOKENS) - 1
    encoder = MeasuringEncoder()
    code_tokens(model, ORDER, encoder, [], BOS, count, known, 1, config)
    decoder = Decoder(encoder.content())
    found = code_tokens(model, ORDER, decoder, [], BOS, count, None, 1, config)
    decoder.finish()
    assert np.array_equal(found.tokens, known)
    losses = score_first_losses(model, ORDER, config, TOKENS, [], 4 * LENGTH)
    assert encoder.ideal_bits == pytest.approx(float(losses.sum()) / math.log(2), rel=1e-9)


def test_a_loss_that_is_not_finite_is_reported() -> None:
    model = random_model(CONFIG, seed=5, dtype=torch.float32)
    wild = replace(ADAPTERS, adapter_lr=1e30)
    with pytest.raises(UserError, match="diverged in a document"):
        score_first_losses(model, ORDER, wild, TOKENS, [], 64)
