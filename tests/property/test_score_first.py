"""Score-first learning against a serial simulation written from its description."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.compress.entropy import Decoder
from paramgolf.config import ScoreFirstConfig
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.scoring.coded_text import code_tokens
from paramgolf.scoring.score_first import PASS_TOKENS, score_first_losses
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import in_chunks, plain_windows, windows_of
from tests.helpers import MeasuringEncoder, random_model, small_config

CONFIG = small_config()
LENGTH = CONFIG.seq_len
ORDER = layer_order(CONFIG, recurrent=True)
LEARNING = ScoreFirstConfig("adamw", lr=3e-3, chunk_tokens=2 * LENGTH)


def small_model(dtype: torch.dtype = torch.float64) -> GPT:
    return random_model(CONFIG, seed=5, dtype=dtype)


def some_tokens(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, CONFIG.vocab_size, count + 1).astype(np.uint16)


def simulated(tokens: np.ndarray, stride: int, config: ScoreFirstConfig) -> list[float]:
    """Losses target by target; the weights learn after the last target of every chunk but one."""
    model = copy.deepcopy(small_model())
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.999), weight_decay=0.0)
    stream = torch.from_numpy(tokens.astype(np.int64))
    num_targets, size = len(tokens) - 1, config.chunk_tokens
    chunks = math.ceil(num_targets / size)
    losses: list[float] = []
    for target in range(num_targets):
        start = target // LENGTH * LENGTH
        if stride:
            start = max(0, math.ceil((target + 1 - LENGTH) / stride) * stride)
        with torch.no_grad():
            logits = model.logits(model(stream[None, start : target + 1], ORDER)[0, -1])
        losses.append(-float(logits.log_softmax(-1)[stream[target + 1]]))
        chunk = target // size
        if (target + 1) % size or chunk == chunks - 1:
            continue
        rows = [
            stream[begin : begin + LENGTH + 1]
            for begin in range(chunk * size, (chunk + 1) * size, LENGTH)
        ]
        optimizer.param_groups[0]["lr"] = config.lr * (1 + math.cos(math.pi * chunk / chunks)) / 2
        optimizer.zero_grad()
        logits = model.logits(model(torch.stack(rows)[:, :-1], ORDER))
        wanted = torch.stack(rows)[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted).backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        optimizer.step()
    return losses


@pytest.mark.parametrize("stride", [0, 4, LENGTH])
def test_losses_match_the_simulation(stride: int) -> None:
    """With strides that divide a chunk, the targets of a window all belong to one chunk."""
    model, tokens = small_model(), some_tokens(7 * LENGTH + 3)
    before = copy.deepcopy(model.state_dict())
    windows = windows_of(len(tokens) - 1, LENGTH, stride)
    losses = score_first_losses(model, ORDER, LEARNING, tokens, windows, 8 * LENGTH)
    expected = simulated(tokens, stride, LEARNING)
    assert losses.tolist() == pytest.approx(expected, abs=1e-8)
    fixed = window_losses(model, ORDER, tokens, windows, 8 * LENGTH)
    assert torch.equal(fixed[: 2 * LENGTH], losses[: 2 * LENGTH])
    assert not torch.allclose(fixed[2 * LENGTH :], losses[2 * LENGTH :], atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_in_several_passes_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of two sequences, learned in passes of one sequence."""
    monkeypatch.setitem(PASS_TOKENS, "cpu", LENGTH)
    lengths: list[int] = []
    model, tokens = small_model(), some_tokens(7 * LENGTH + 3)
    model.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].numel()))
    windows = plain_windows(len(tokens) - 1, LENGTH)
    losses = score_first_losses(model, ORDER, LEARNING, tokens, windows, LENGTH)
    assert max(lengths) == LENGTH
    assert losses.tolist() == pytest.approx(simulated(tokens, 0, LEARNING), abs=1e-8)


@settings(max_examples=60)
@given(st.integers(0, 400), st.integers(0, LENGTH), st.integers(1, 5))
def test_a_chunk_is_scored_before_it_is_learned_from(
    num_targets: int, stride: int, sequences: int
) -> None:
    """All windows occur once, and a chunk's targets are in its own or in earlier windows."""
    windows, size = windows_of(num_targets, LENGTH, stride), sequences * LENGTH
    chunks = in_chunks(windows, num_targets, LENGTH, size)
    scored: set[int] = set()
    starts: list[int] = []
    for number, chunk in enumerate(chunks):
        for some in chunk:
            starts += some.starts.tolist()
            for start in some.starts.tolist():
                scored |= set(range(start + LENGTH - some.scored, start + LENGTH))
        assert scored >= set(range(min((number + 1) * size, num_targets)))
    if num_targets:
        assert sorted(starts) == sorted(start for some in windows for start in some.starts.tolist())


@pytest.mark.parametrize(("stride", "lanes"), [(0, 1), (0, 3), (5, 1)])
def test_a_learning_model_codes_and_decodes(stride: int, lanes: int) -> None:
    model, tokens = small_model(torch.float32), some_tokens(6 * LENGTH + 1).astype(np.int32)
    count = len(tokens) - 1
    windows, first = windows_of(count, LENGTH, stride), int(tokens[0])
    encoder = MeasuringEncoder()
    code_tokens(model, ORDER, encoder, windows, first, count, tokens, lanes, LEARNING)
    decoder = Decoder(encoder.content())
    found = code_tokens(model, ORDER, decoder, windows, first, count, None, lanes, LEARNING)
    decoder.finish()
    assert np.array_equal(found.tokens, tokens)
    if lanes == 1:
        nats = score_first_losses(
            model, ORDER, LEARNING, tokens.astype(np.uint16), windows, 64
        ).double()
        assert encoder.ideal_bits == pytest.approx(float(nats.sum()) / math.log(2), rel=1e-4)


def test_divergence_is_reported() -> None:
    wild = ScoreFirstConfig("adamw", lr=1e30, chunk_tokens=LENGTH)
    model, tokens = small_model(torch.float32), some_tokens(5 * LENGTH)
    with pytest.raises(UserError, match="diverged in chunk"):
        score_first_losses(model, ORDER, wild, tokens, plain_windows(5 * LENGTH, LENGTH), 64)


def test_the_beginning_of_a_text_is_coded_with_the_rates_of_the_whole() -> None:
    """The losses of the whole text are those of its beginning only if the schedule is the same."""
    model, tokens = small_model(torch.float32), some_tokens(7 * LENGTH + 3)
    whole = len(tokens) - 1
    windows = windows_of(whole, LENGTH, 4)
    losses = score_first_losses(model, ORDER, LEARNING, tokens, windows, LENGTH)
    count = 5 * LENGTH
    part, known = windows_of(count, LENGTH, 4), tokens[: count + 1].astype(np.int32)
    bits: dict[int, float] = {}
    for total in (0, whole):
        encoder = MeasuringEncoder()
        how = (part, int(tokens[0]), count)
        code_tokens(model, ORDER, encoder, *how, known, 1, LEARNING, total)
        decoder = Decoder(encoder.content())
        decoded = code_tokens(model, ORDER, decoder, *how, None, 1, LEARNING, total)
        assert np.array_equal(decoded.tokens, known)
        bits[total] = encoder.ideal_bits
    expected = float(losses[:count].double().sum()) / math.log(2)
    assert bits[whole] == pytest.approx(expected, rel=1e-5)
    assert bits[0] != pytest.approx(expected, rel=1e-4)
