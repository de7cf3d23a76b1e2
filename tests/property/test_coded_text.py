"""Tokens coded under a model's predictions and decoded, for all kinds of windows and lanes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.compress.entropy import Decoder
from paramgolf.model.order import layer_order
from paramgolf.scoring.coded_text import code_tokens
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import windows_of
from tests.helpers import MeasuringEncoder, random_model, small_config

CONFIG = small_config()
MODEL = random_model(CONFIG, seed=5, dtype=torch.float32)
ORDER = layer_order(CONFIG, recurrent=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 90), st.integers(0, CONFIG.seq_len), st.integers(1, 9), st.integers(0, 99))
def test_tokens_are_coded_and_decoded(num_targets: int, stride: int, lanes: int, seed: int) -> None:
    """The decoder knows only the first token, and the stream is as long as the score says."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, CONFIG.vocab_size, num_targets + 1).astype(np.int32)
    seq_len = CONFIG.seq_len
    windows, first = windows_of(num_targets, seq_len, stride), int(tokens[0])
    if stride:
        lanes = 1
    encoder = MeasuringEncoder()
    seen = [(0, num_targets)]
    how = windows, first, num_targets, tokens, lanes
    code_tokens(MODEL, ORDER, encoder, *how, progress=lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert seen[-1] == (num_targets, num_targets)
    decoder = Decoder(encoder.content())
    found = code_tokens(MODEL, ORDER, decoder, windows, first, num_targets, None, lanes)
    decoder.finish()
    assert np.array_equal(found.tokens, tokens)
    if num_targets:
        nats = window_losses(MODEL, ORDER, tokens.astype(np.uint16), windows, 64).double()
        heads = [run[0] for run in np.array_split(windows[0].starts, lanes) if len(run)][1:]
        assert found.heads.tolist() == heads
        nats[np.array(heads, int) - 1] = math.log(CONFIG.vocab_size)
        assert encoder.ideal_bits == pytest.approx(float(nats.sum()) / math.log(2), rel=1e-5)
