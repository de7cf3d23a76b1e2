"""Predictions token by token against the forward pass over whole windows.

On a CPU the step that a GPU records (one token, whose position is a tensor) runs plain.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paramgolf.model.attention import causal_attention
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.scoring.next_token import NextToken
from tests.helpers import random_model, random_tokens, small_config

CONFIG = small_config()
LENGTH = CONFIG.seq_len
ORDER = layer_order(CONFIG, recurrent=True)


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(CONFIG, seed=3)


@torch.no_grad()
def whole(model: GPT, tokens_BT: Tensor) -> Tensor:
    """The logits of all next tokens, (B, T, V), from one forward pass."""
    return model.logits(model(tokens_BT, ORDER))


class StepByStep(NextToken):
    """Reads single tokens as a GPU does, without recording."""

    @torch.no_grad()
    def read(self, tokens_BT: Tensor) -> Tensor:
        if tokens_BT.size(1) > 1:
            return super().read(tokens_BT)
        logits_BV = self._logits_at(tokens_BT, torch.tensor([self._past.length]))
        self._past.keep_last()
        return logits_BV


readers = pytest.mark.parametrize("reader", [NextToken, StepByStep])


def read_in_chunks(next_token: NextToken, tokens_BT: Tensor, sizes: list[int]) -> Tensor:
    """The logits after every chunk, (chunks, B, V)."""
    next_token.begin(len(tokens_BT))
    return torch.stack([next_token.read(chunk) for chunk in tokens_BT.split(sizes, dim=1)])


@readers
@pytest.mark.parametrize("first", [1, 2, 7, 16])
@pytest.mark.parametrize("rows", [1, 3])
def test_logits_are_those_of_the_whole_window(
    model: GPT, reader: type[NextToken], first: int, rows: int
) -> None:
    tokens = random_tokens(CONFIG, rows, LENGTH)
    sizes = [first, *[1] * (LENGTH - first)]
    found = read_in_chunks(reader(model, ORDER), tokens, sizes)
    expected = whole(model, tokens)[:, first - 1 :].transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@readers
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, LENGTH), min_size=1, max_size=5), st.data())
def test_a_cache_forgets_the_sequences_before(
    model: GPT, reader: type[NextToken], lengths: list[int], data: st.DataObject
) -> None:
    """Bit for bit, whatever the length and the number of the sequences before."""
    used = reader(model, ORDER)
    for seed, length in enumerate(lengths):
        rows = data.draw(st.integers(1, 2))
        tokens = random_tokens(CONFIG, rows, length, seed)
        first = data.draw(st.integers(1, length))
        sizes = [first, *[1] * (length - first)]
        found = read_in_chunks(used, tokens, sizes)
        fresh = read_in_chunks(reader(model, ORDER), tokens, sizes)
        assert torch.equal(found, fresh)
        torch.testing.assert_close(found[-1], whole(model, tokens)[:, -1], rtol=0, atol=1e-12)


@readers
def test_the_weights_may_change_between_sequences(reader: type[NextToken]) -> None:
    model, tokens = random_model(CONFIG, seed=3), random_tokens(CONFIG, 2, LENGTH)
    next_token = reader(model, ORDER)
    before = read_in_chunks(next_token, tokens, [1] * LENGTH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.1
    after = read_in_chunks(next_token, tokens, [1] * LENGTH)
    assert float((after - before).abs().max()) > 0.1
    torch.testing.assert_close(after[-1], whole(model, tokens)[:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 3])
def test_a_mask_selects_keys(kv_heads: int, queries: int) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, queries, 4, 6, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 9, kv_heads, 6, generator=generator, dtype=torch.float64)
    seen = torch.rand(queries, 9, generator=generator) < 0.6
    found = causal_attention(q, k, v, seen)
    for row in range(2):
        for head in range(4):
            of_group = head // (4 // kv_heads)
            for query in range(queries):
                keys, values = (t[row, seen[query], of_group] for t in (k, v))
                weights = (keys @ q[row, query, head] / 6**0.5).softmax(0)
                torch.testing.assert_close(
                    found[row, query, head], weights @ values, rtol=0, atol=1e-12
                )
