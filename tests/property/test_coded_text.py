"""Tokens under the model's predictions and back, for windows and lanes of all kinds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramgolf.compress.entropy import Decoder, Encoder
from paramgolf.model.order import layer_order
from paramgolf.scoring.coded_text import code_tokens
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import plain_windows, sliding_windows
from tests.helpers import random_model, small_config

CONFIG = small_config()
MODEL = random_model(CONFIG, seed=5, dtype=torch.float32)
ORDER = layer_order(CONFIG, recurrent=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 90), st.integers(0, CONFIG.seq_len), st.integers(1, 9), st.integers(0, 99))
def test_there_and_back(num_targets: int, stride: int, lanes: int, seed: int) -> None:
    """The decoder is given no token but the first; the bits are those of the score."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, CONFIG.vocab_size, num_targets + 1).astype(np.int32)
    seq_len = CONFIG.seq_len
    if stride:
        windows, lanes = sliding_windows(num_targets, seq_len, stride), 1
    else:
        windows = plain_windows(num_targets, seq_len)
    first = int(tokens[0])
    encoder = Encoder()
    code_tokens(MODEL, ORDER, encoder, windows, first, num_targets, tokens, lanes)
    decoder = Decoder(encoder.content())
    found = code_tokens(MODEL, ORDER, decoder, windows, first, num_targets, None, lanes)
    decoder.finish()
    assert np.array_equal(found, tokens)
    if num_targets:
        nats = window_losses(MODEL, ORDER, tokens.astype(np.uint16), windows, 64).double()
        heads = [run[0] for run in np.array_split(windows[0].starts, lanes) if len(run)][1:]
        nats[np.array(heads, int) - 1] = math.log(CONFIG.vocab_size)
        assert encoder.ideal_bits == pytest.approx(float(nats.sum()) / math.log(2), rel=1e-5)
