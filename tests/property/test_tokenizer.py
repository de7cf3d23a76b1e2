"""Tokens and their bytes: encoding is lossless, and every byte is counted once."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError

FRAGMENTS = [
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "\0", "\x07", "\x1f", "\x7f", "\x85", "\xa0", "\u2028",
    "\u3000", "\ufeff", "\ufffd", "\u0301", "\u200d", "\U0001f600", "\U0001f469\u200d\U0001f680",
    " the", "The ", "1234567890", "<s>", "</s>", "<unk>", "<pad>", "<0x41>", "\u4e2d\u6587",
    "\u2581", "\u2581\u2581",
]  # fmt: skip

CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.text(CHARACTERS, max_size=8)), max_size=12
).map("".join)


def sentencepiece_model(lines: list[str], **options: Any) -> bytes:
    """Train with SentencePiece itself, to get models that `train_tokenizer` never returns."""
    model = io.BytesIO()
    defaults: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 420, "normalization_rule_name": "identity",
        "byte_fallback": True, "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3,
        "num_threads": 1, "minloglevel": 2,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **(defaults | options)
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def lines(english: list[str]) -> list[str]:
    return [line for text in english[:20] for line in text.split("\n") if line]


@pytest.fixture(scope="module")
def with_dummy_prefix(lines: list[str]) -> Tokenizer:
    """A tokenizer like most: a space is added in front of a text and not decoded."""
    return Tokenizer(sentencepiece_model(lines, add_dummy_prefix=True))


@settings(max_examples=400)
@given(TEXTS)
@example("")
@example(" leading")
@example("   three, and trailing  ")
@example("\n")
@example("\u2581")
@example(" \u2581 a\u2581\u2581b \u2581")
@example("\0")
@example("<s> is text, <0x0A> too")
def test_encoding_is_lossless_and_bytes_add_up(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode([text])[0]
    assert tokens.dtype == np.uint16
    assert tokens[0] == tokenizer.bos
    assert tokenizer.bos not in tokens[1:]
    assert tokenizer.decode_documents(tokens) == [text]
    assert int(tokenizer.token_bytes(tokens).sum()) == len(text.encode())


@settings(max_examples=150)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_a_stream_of_documents_is_lossless(tokenizer: Tokenizer, texts: list[str]) -> None:
    stream = np.concatenate(tokenizer.encode(texts))
    assert tokenizer.decode_documents(stream) == texts
    total = sum(len(text.encode()) for text in texts)
    assert int(tokenizer.token_bytes(stream).sum()) == total


def test_texts_encoded_together_are_those_encoded_alone(
    tokenizer: Tokenizer, english: list[str]
) -> None:
    """Threads share the texts and must not mix them up."""
    texts = [text[start : start + 700] for text in english for start in range(0, 4000, 700)]
    together = tokenizer.encode(texts)
    assert len(together) == len(texts) > 100
    for text, tokens in zip(texts, together, strict=True):
        assert tokens.tolist() == tokenizer.encode([text])[0].tolist()


def test_a_stream_that_begins_inside_a_document(tokenizer: Tokenizer) -> None:
    stream = np.concatenate(tokenizer.encode(["abc def", " ghi"]))
    assert tokenizer.decode_documents(stream[1:]) == ["abc def", " ghi"]


def test_bytes_of_every_token(tokenizer: Tokenizer, english: list[str]) -> None:
    """The first N tokens have as many bytes as the text that they decode to."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    text = " " + english[3][:1500] + "\u00e9 caf\u00e9\t\U0001f600 end"
    tokens = tokenizer.encode([text])[0]
    counted = np.cumsum(tokenizer.token_bytes(tokens))
    compared = 0
    for end in range(1, len(tokens)):
        decoded = processor.decode(tokens[: end + 1].tolist())
        if "\ufffd" not in decoded:  # else it ends inside a character of several bytes
            assert counted[end - 1] == len(decoded.encode())
            compared += 1
    assert compared > 300


def test_token_bytes_of_a_bare_bos_is_empty(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.encode([""])[0]).shape == (0,)


def test_control_tokens_have_no_bytes(tokenizer: Tokenizer) -> None:
    tokens = np.array([1, 0, 2, 1, 3, 1], dtype=np.uint16)  # pad, eos, bos, unknown, bos
    assert tokenizer.token_bytes(tokens).tolist() == [0, 0, 0, 0, 0]


def test_training_is_deterministic(english: list[str], tokenizer_model: bytes) -> None:
    assert train_tokenizer(english, 450) == tokenizer_model
    assert train_tokenizer(english[:20], 450) != tokenizer_model


def test_vocabulary_and_hash(tokenizer: Tokenizer, tokenizer_model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer_model)
    loaded = Tokenizer.load(path)
    assert loaded.vocab_size == tokenizer.vocab_size == 450
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.encode(["the same"])[0].tolist() == tokenizer.encode(["the same"])[0].tolist()


@settings(max_examples=300)
@given(TEXTS)
@example("x")
@example(" x")
@example("two  spaces ")
def test_dummy_prefix_counts_what_is_decoded(with_dummy_prefix: Tokenizer, text: str) -> None:
    assume("\u2581" not in text)  # only tokenizers that add nothing can escape it
    tokens = with_dummy_prefix.encode([text])[0]
    (decoded,) = with_dummy_prefix.decode_documents(tokens)
    assert int(with_dummy_prefix.token_bytes(tokens).sum()) == len(decoded.encode())


def test_dummy_prefix_in_a_stream(with_dummy_prefix: Tokenizer) -> None:
    texts = ["one two", "three", "the the the"]
    stream = np.concatenate(with_dummy_prefix.encode(texts))
    assert with_dummy_prefix.decode_documents(stream) == texts
    total = sum(len(text.encode()) for text in texts)
    assert int(with_dummy_prefix.token_bytes(stream).sum()) == total


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content", [b"no model at all", bytes(range(256)) * 20, b"\n\x05hello" * 100]
)
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.model"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        Tokenizer.load(path)
    assert str(path) in one_line(error)


def test_a_truncated_model_is_refused(tokenizer_model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "truncated.model"
    path.write_bytes(tokenizer_model[: len(tokenizer_model) // 2 + 1])
    with pytest.raises(UserError) as error:
        Tokenizer.load(path)
    assert str(path) in one_line(error)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.model", tmp_path):
        with pytest.raises(UserError) as error:
            Tokenizer.load(path)
        assert str(path) in one_line(error)


def test_a_tokenizer_without_bos_is_refused(lines: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Tokenizer(sentencepiece_model(lines, bos_id=-1), "mine.model")
    assert "mine.model" in one_line(error)
    assert "BOS" in str(error.value)


def test_a_tokenizer_without_a_space_is_refused() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(2000)]
    model = sentencepiece_model(words, vocab_size=400, add_dummy_prefix=False)
    with pytest.raises(UserError) as error:
        Tokenizer(model, "mine.model")
    assert "mine.model" in one_line(error)
    assert "\u2581" in str(error.value)
