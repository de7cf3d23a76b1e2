"""On a CUDA GPU: recorded one-token steps, and what coding and generation make of them."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from paramgolf.compress.entropy import Decoder
from paramgolf.config import ModelConfig, ScoreFirstConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.model.past import Past
from paramgolf.runtime.device import reproducible, select_runtime
from paramgolf.scoring.coded_text import code_tokens
from paramgolf.scoring.generate import sample_tokens
from paramgolf.scoring.next_token import NextToken
from paramgolf.scoring.score_first import score_first_losses
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import sliding_windows, windows_of
from tests.helpers import MeasuringEncoder, random_model, random_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

CONFIG = ModelConfig(vocab_size=512, num_layers=6, width=256, num_heads=4, num_kv_heads=2,
                     seq_len=128, loop_first=2, loop_last=3, parallel_from=4)  # fmt: skip
ORDER = layer_order(CONFIG, recurrent=True)
LENGTH = CONFIG.seq_len


def on_gpu(dtype: torch.dtype = torch.bfloat16, accelerated: bool = False) -> GPT:
    """A random model; its weights do not depend on the dtype."""
    runtime = select_runtime("cuda")  # also sets what `reproducible` needs
    model = GPT(CONFIG, dtype)
    model.load_state_dict(random_model(CONFIG, seed=1).state_dict())
    model.to(runtime.device)
    if accelerated:
        model.accelerate()
    return model


def logits_of(next_token: NextToken, tokens_BT: Tensor, first: int) -> Tensor:
    """Logits after `first` tokens, and after each further one, (B, T - first + 1, V)."""
    next_token.begin(len(tokens_BT))
    sizes = [first, *[1] * (tokens_BT.size(1) - first)]
    parts = [next_token.read(chunk) for chunk in tokens_BT.split(sizes, dim=1)]
    return torch.stack(parts, dim=1).double().cpu()


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("first", [1, 30, LENGTH])
@pytest.mark.parametrize("rows", [1, 5])
def test_recorded_logits_match_float64(rows: int, first: int, accelerated: bool) -> None:
    model, tokens = on_gpu(accelerated=accelerated), random_tokens(CONFIG, rows, LENGTH)
    found = logits_of(NextToken(model, ORDER), tokens, first)
    exact = random_model(CONFIG, seed=1)
    with torch.no_grad():
        expected = exact.logits(exact(tokens, ORDER))[:, first - 1 :]
    assert found.isfinite().all()
    assert float(torch.cosine_similarity(found, expected, dim=-1).min()) > 0.999


def test_recorded_logits_equal_plain_ones() -> None:
    """In float32, where rounding does not hide a mistake."""
    model, tokens = on_gpu(torch.float32), random_tokens(CONFIG, 3, LENGTH)
    found = logits_of(NextToken(model, ORDER), tokens, 20)
    past = Past(CONFIG, ORDER, 3, model.embedding)
    with torch.no_grad():
        parts = tokens.cuda().split([20, *[1] * (LENGTH - 20)], dim=1)
        plain = [model.logits(model(part, ORDER, past=past)[:, -1]) for part in parts]
    expected = torch.stack(plain, dim=1).double().cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_a_cache_that_is_used_again_and_weights_that_change() -> None:
    """Bit for bit what a new recording returns."""
    model = on_gpu()
    used = NextToken(model, ORDER)
    with reproducible():
        for seed, (rows, first) in enumerate([(2, 1), (2, 90), (3, 7), (2, 40)]):
            tokens = random_tokens(CONFIG, rows, LENGTH - 3 * seed, seed)
            found = logits_of(used, tokens, first)
            assert torch.equal(found, logits_of(NextToken(model, ORDER), tokens, first))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter *= 0.99
            assert not torch.equal(found, logits_of(used, tokens, first))


@pytest.mark.parametrize(
    "learning",
    [
        None,
        ScoreFirstConfig("adamw", 1e-3, chunk_tokens=2 * LENGTH),
        ScoreFirstConfig(chunk_tokens=2 * LENGTH, adapter_rank=2, adapter_tokens=16),
    ],
)
@pytest.mark.parametrize(("stride", "lanes"), [(0, 1), (0, 3), (32, 1)])
def test_tokens_are_coded_and_decoded(
    stride: int, lanes: int, learning: ScoreFirstConfig | None
) -> None:
    """With a last turn of fewer lanes, by a decoder that records its own steps."""
    count = 5 * LENGTH - 9
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, count + 1).astype(np.int32)
    windows = windows_of(count, LENGTH, stride)
    encoder = MeasuringEncoder()

    def code(coder: MeasuringEncoder | Decoder, known: np.ndarray | None) -> np.ndarray:
        how = windows, int(tokens[0]), count, known, lanes, learning
        return code_tokens(on_gpu(), ORDER, coder, *how).tokens

    code(encoder, tokens)
    decoder = Decoder(encoder.content())
    assert np.array_equal(code(decoder, None), tokens)
    decoder.finish()
    if lanes == 1:
        model, how = on_gpu(accelerated=True), (tokens.astype(np.uint16), windows, 4 * LENGTH)
        if learning is None:
            nats = window_losses(model, ORDER, *how)
        else:
            nats = score_first_losses(model, ORDER, learning, *how)
        assert encoder.ideal_bits == pytest.approx(float(nats.double().sum()) / np.log(2), rel=0.01)


def test_greedy_text_is_that_of_whole_windows() -> None:
    """In float32, and through several windows."""
    model, prompt = on_gpu(torch.float32), [5, 17, 200]
    with torch.no_grad():  # or a random model repeats its last token
        model.block_list()[-1].stream_mix.neg_()
    generator = torch.Generator()
    found = list(islice(sample_tokens(model, ORDER, prompt, 0.0, 1.0, generator), 200))
    tokens, window = [], prompt
    for _ in range(200):
        if len(window) > LENGTH:
            window = window[-(LENGTH // 2) :]
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([window]).cuda(), ORDER)[0, -1])
        tokens.append(int(logits.argmax()))
        window = [*window, tokens[-1]]
    assert found == tokens
    assert len(set(tokens)) > 10


def test_only_scored_positions_of_the_last_block() -> None:
    """Accelerated, recorded, in bfloat16: the losses that whole windows give."""
    model, count = on_gpu(accelerated=True), 40 * LENGTH
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, count + 1).astype(np.uint16)
    windows = sliding_windows(count, LENGTH, 32)
    found = window_losses(model, ORDER, tokens, windows, 8 * LENGTH)
    ids = torch.from_numpy(tokens.astype(np.int64)).cuda()
    rows = torch.stack([ids[s : s + LENGTH + 1] for s in windows[1].starts])
    with torch.no_grad():
        hidden = model(rows[:, :-1], ORDER)[:, -32:]
        expected = model.target_nats(hidden, rows[:, -32:])
    difference = found[LENGTH:].double() - expected.flatten().double()
    assert abs(float(difference.mean())) < 0.02  # of 30 nats: bfloat16
    assert float(difference.abs().mean()) < 0.2
