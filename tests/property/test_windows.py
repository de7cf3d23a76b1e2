"""Windows and their losses, against loops written from the definition."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.config import ModelConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder, layer_order
from paramgolf.scoring.bits_per_byte import document_nats
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import Windows, plain_windows, sliding_windows, windows_of
from tests import reference
from tests.helpers import random_model

LENGTH = 16
VOCAB = 300


def listed(windows: Sequence[Windows], num_targets: int, length: int) -> list[reference.Window]:
    """Return the package's windows one by one."""
    return [
        (int(start), [t for t in range(start + length - scored, start + length) if t < num_targets])
        for starts, scored in windows
        for start in starts
    ]


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    length = draw(st.integers(1, 40))
    return draw(st.integers(1, 250)), length, draw(st.integers(1, length))


@given(shapes())
def test_plain_windows_match_the_definition(shape: tuple[int, int, int]) -> None:
    num_targets, length, _ = shape
    windows = listed(plain_windows(num_targets, length), num_targets, length)
    assert windows == reference.plain_windows(num_targets, length)
    assert [t for _, targets in windows for t in targets] == list(range(num_targets))


@settings(max_examples=400)
@given(shapes())
def test_sliding_windows_match_the_definition(shape: tuple[int, int, int]) -> None:
    num_targets, length, stride = shape
    windows = listed(sliding_windows(num_targets, length, stride), num_targets, length)
    assert windows == reference.sliding_windows(num_targets, length, stride)


@settings(max_examples=400)
@given(shapes())
def test_sliding_windows_score_all_once_with_enough_context(shape: tuple[int, int, int]) -> None:
    num_targets, length, stride = shape
    windows = listed(sliding_windows(num_targets, length, stride), num_targets, length)
    assert [t for _, targets in windows for t in targets] == list(range(num_targets))
    for start, targets in windows:
        assert targets, "a window without targets is wasted work"
        for target in targets:
            context = target - start + 1
            assert context <= length
            assert context == target + 1 or context >= length - stride + 1
            if target >= length:
                assert context >= length - stride + 1


def test_stride_of_a_whole_window_is_plain() -> None:
    for num_targets in range(1, 70):
        sliding = listed(sliding_windows(num_targets, LENGTH, LENGTH), num_targets, LENGTH)
        assert sliding == reference.plain_windows(num_targets, LENGTH)


@pytest.fixture(scope="module")
def model() -> GPT:
    """A small random model in float64."""
    config = ModelConfig(
        vocab_size=VOCAB, num_layers=4, width=16, num_heads=2, num_kv_heads=1, mlp_ratio=2,
        seq_len=LENGTH, rotary_dims=4, loop_first=1, loop_last=2, loop_visits=2, parallel_from=3,
    )  # fmt: skip
    return random_model(config, seed=7)


@pytest.fixture(scope="module")
def order(model: GPT) -> LayerOrder:
    return layer_order(model.config, recurrent=True)


def stream(num_targets: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, VOCAB, num_targets + 1).astype(np.uint16)


@torch.no_grad()
def losses_one_by_one(
    model: GPT, order: LayerOrder, tokens: NDArray[np.uint16], windows: list[reference.Window]
) -> Tensor:
    """Score every window separately, without padding."""
    ids = torch.tensor(tokens.tolist())
    losses = []
    for start, targets in windows:
        inputs = ids[start : min(start + LENGTH, len(ids) - 1)]
        logits = model(inputs[None], order)[0] @ model.embedding.T
        softcap = model.config.logit_softcap
        log_p = torch.log_softmax(softcap * torch.tanh(logits / softcap), dim=-1)
        losses += [-log_p[target - start, ids[target + 1]] for target in targets]
    return torch.stack(losses)


BATCH_TOKENS = st.sampled_from([1, LENGTH, 3 * LENGTH, 50 * LENGTH])


@settings(max_examples=100)
@given(st.integers(1, 70), st.integers(0, LENGTH), BATCH_TOKENS)
def test_losses_equal_those_of_windows_alone(
    model: GPT, order: LayerOrder, num_targets: int, stride: int, batch_tokens: int
) -> None:
    tokens = stream(num_targets)
    windows = windows_of(num_targets, LENGTH, stride)
    losses = window_losses(model, order, tokens, windows, batch_tokens)
    if stride:
        expected_windows = reference.sliding_windows(num_targets, LENGTH, stride)
    else:
        expected_windows = reference.plain_windows(num_targets, LENGTH)
    expected = losses_one_by_one(model, order, tokens, expected_windows)
    assert losses.shape == (num_targets,)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=40)
@given(
    parallel_from=st.integers(0, 3),
    recurrent=st.booleans(),
    kv_heads=st.sampled_from([1, 2]),
    stride=st.integers(1, LENGTH),
    num_targets=st.integers(1, 70),
    tolerance=st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-5)]),
)
def test_what_is_not_scored_does_not_change_what_is(
    parallel_from: int,
    recurrent: bool,
    kv_heads: int,
    stride: int,
    num_targets: int,
    tolerance: tuple[torch.dtype, float],
) -> None:
    """The last block is computed at scored positions only, whatever its kind and the order."""
    dtype, error = tolerance
    config = ModelConfig(
        vocab_size=VOCAB, num_layers=3, width=16, num_heads=2, num_kv_heads=kv_heads, mlp_ratio=2,
        seq_len=LENGTH, rotary_dims=4, loop_first=1, loop_last=2, loop_visits=2,
        parallel_from=parallel_from,
    )  # fmt: skip
    model, order = random_model(config, seed=7, dtype=dtype), layer_order(config, recurrent)
    tokens = stream(num_targets)
    losses = window_losses(model, order, tokens, sliding_windows(num_targets, LENGTH, stride), 64)
    windows = reference.sliding_windows(num_targets, LENGTH, stride)
    expected = losses_one_by_one(model, order, tokens, windows)
    torch.testing.assert_close(losses, expected, rtol=error, atol=error)


def test_losses_differ_between_strides(model: GPT, order: LayerOrder) -> None:
    """The comparisons above would be meaningless if context made no difference."""
    tokens = stream(80)
    wide = window_losses(model, order, tokens, sliding_windows(80, LENGTH, 1), 64)
    plain = window_losses(model, order, tokens, plain_windows(80, LENGTH), 64)
    torch.testing.assert_close(wide[:LENGTH], plain[:LENGTH], rtol=1e-10, atol=1e-10)
    assert float((wide - plain)[LENGTH:].abs().max()) > 1e-3


@pytest.mark.parametrize("num_targets", [1, 5, 16, 17, 40, 63])
def test_text_after_the_last_target_does_not_matter(
    model: GPT, order: LayerOrder, num_targets: int
) -> None:
    """A text is padded where a longer one has other tokens."""
    longer = stream(3 * LENGTH + num_targets)
    short = longer[: num_targets + 1]
    losses = window_losses(model, order, short, plain_windows(num_targets, LENGTH), 64)
    of_longer = window_losses(model, order, longer, plain_windows(len(longer) - 1, LENGTH), 64)
    assert bool(losses.isfinite().all())
    torch.testing.assert_close(losses, of_longer[:num_targets], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_targets", [1, 15, 16, 17, 40, 63])
@pytest.mark.parametrize("batch_tokens", [LENGTH, 5 * LENGTH])
def test_windows_of_padding_do_not_matter(
    model: GPT, order: LayerOrder, num_targets: int, batch_tokens: int
) -> None:
    """An accelerated model gets full batches; only the shapes are tested here, on the CPU."""
    tokens = stream(num_targets)
    for windows in (plain_windows(num_targets, LENGTH), sliding_windows(num_targets, LENGTH, 3)):
        model.accelerated = True
        try:
            padded = window_losses(model, order, tokens, windows, batch_tokens)
        finally:
            model.accelerated = False
        expected = losses_one_by_one(model, order, tokens, listed(windows, num_targets, LENGTH))
        torch.testing.assert_close(padded, expected, rtol=1e-10, atol=1e-10)


def note(seen: list[tuple[int, int]], done: int, total: int) -> None:
    seen.append((done, total))


def test_progress_ends_at_the_number_of_targets(model: GPT, order: LayerOrder) -> None:
    for windows in (plain_windows(75, LENGTH), sliding_windows(75, LENGTH, 7)):
        seen: list[tuple[int, int]] = []
        window_losses(model, order, stream(75), windows, 2 * LENGTH, partial(note, seen))
        assert seen == sorted(seen)
        assert seen[-1] == (75, 75)
        assert len(seen) > 1


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(0, 2**31))
def test_a_loss_belongs_to_the_document_of_its_token(stream: list[int], seed: int) -> None:
    bos = 1
    losses = torch.rand(len(stream) - 1, generator=torch.Generator().manual_seed(seed))
    expected, documents = 0.0, []
    for position, token in enumerate(stream):
        if token == bos and position:
            documents.append(expected)
            expected = 0.0
        if position:
            expected += float(losses[position - 1])
    documents.append(expected)
    found = document_nats(losses, np.array(stream, np.uint16), bos)
    np.testing.assert_allclose(found, documents, rtol=1e-12)
