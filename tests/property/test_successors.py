"""Pairs of pieces that no encoding contains, against SentencePiece itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paramgolf.data.successors import impossible_successors
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.model.losses import LEFT_OUT_BITS, predicted, predicted_nats
from tests.property.test_tokenizer import TEXTS, sentencepiece_model
from tests.reference import impossible_successors as by_encoding
from tests.reference import nats


def found(model: bytes) -> NDArray[np.bool_]:
    table = impossible_successors(model)
    assert table is not None
    return table


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "CaseOps"])
def tokenizer(request: pytest.FixtureRequest, english: list[str]) -> Tokenizer:
    return Tokenizer(train_tokenizer(english, 450, request.param))


@pytest.fixture(scope="module")
def joined(english: list[str]) -> str:
    return "".join(english)


def pairs_in(tokenizer: Tokenizer, text: str) -> int:
    (tokens,) = tokenizer.encode([text])
    return int(found(tokenizer.model)[tokens[:-1], tokens[1:]].sum())


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_they_are_what_sentencepiece_joins(rule: str, english: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    model = sentencepiece_model(
        english, vocab_size=800, normalization_rule_name=rule, add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )  # fmt: skip
    path.write_bytes(model)
    expected = by_encoding(path)
    assert expected.mean() > 0.01
    assert np.array_equal(found(model), expected)


def test_repeated_letters_are_joined_from_the_left(tmp_path: Path) -> None:
    """Where two pairs have the same score, the first of them is joined."""
    path = tmp_path / "tokenizer.model"
    words = ["a" * n for n in range(1, 40)] + ["ab" * n + "a" for n in range(1, 20)]
    path.write_bytes(
        sentencepiece_model(
            [" ".join(words)], vocab_size=280, add_dummy_prefix=False,
            remove_extra_whitespaces=False, hard_vocab_limit=False,
        )
    )  # fmt: skip
    expected = by_encoding(path)
    assert expected.any()
    assert np.array_equal(found(path.read_bytes()), expected)


@given(text=TEXTS)
def test_no_encoding_contains_one(tokenizer: Tokenizer, text: str) -> None:
    assert pairs_in(tokenizer, text) == 0


@given(data=st.data())
def test_no_encoding_of_parts_of_words_contains_one(
    tokenizer: Tokenizer, joined: str, data: st.DataObject
) -> None:
    cuts = data.draw(
        st.lists(st.tuples(st.integers(0, len(joined) - 20), st.integers(1, 12)), max_size=30)
    )
    text = "".join(joined[begin : begin + size] for begin, size in cuts)
    assert pairs_in(tokenizer, text) == 0


def test_nothing_is_left_out_where_the_rule_is_not_known(english: list[str]) -> None:
    for model_type in ("unigram", "char"):
        model = sentencepiece_model(
            english[:10], model_type=model_type, vocab_size=400, hard_vocab_limit=False
        )
        assert impossible_successors(model) is None


def test_the_losses_are_those_of_float64_and_add_up_to_one() -> None:
    generator = torch.Generator().manual_seed(3)
    size, width, softcap = 50, 8, 5.0
    hidden, weight = (
        2 * torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (30, size)
    )
    impossible = torch.rand(size, size, generator=generator) < 0.3
    previous, targets = torch.randint(size, (2, 30), generator=generator)
    expected = nats(
        hidden[None].numpy(), weight.numpy(), targets[None].numpy(), softcap,
        impossible[previous].numpy(),
    )[0]  # fmt: skip
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        arguments = hidden.to(dtype), weight.to(dtype), impossible, previous, targets, softcap
        assert np.abs(predicted_nats(*arguments).double().numpy() - expected).max() < error
    logits, normaliser = predicted(hidden @ weight.T, impossible[previous], softcap)
    shares = (logits - normaliser[:, None]).exp()
    assert torch.allclose(shares.sum(1), torch.ones(30, dtype=torch.float64), atol=1e-12)
    assert torch.equal(logits.softmax(1).argmax(1), shares.argmax(1))
    assert expected[impossible[previous, targets].numpy()] == pytest.approx(
        LEFT_OUT_BITS * math.log(2)
    )
