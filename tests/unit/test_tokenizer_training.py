"""What the training of a tokenizer says when a text does not allow its number of pieces."""

from __future__ import annotations

import random
import re
from pydoc_data.topics import topics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import _lines, train_tokenizer
from paramgolf.errors import UserError

ENGLISH = list(topics.values())[:5]
CHINESE = ["\u4f60\u597d\u5417\u6211\u5f88\u597d\u5929\u5730\u7384\u9ec4\u5b87\u5b99"] * 5
TEXTS = {"English": ENGLISH, "without spaces": CHINESE, "rare space": [*CHINESE * 40, "\u4f60 "]}


@pytest.mark.parametrize("case_ops", [False, True])
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("vocab_size", [261, 40_000])
def test_the_number_that_is_named_works_and_is_the_limit(
    vocab_size: int, name: str, case_ops: bool
) -> None:
    with pytest.raises(UserError) as error:
        train_tokenizer(TEXTS[name], vocab_size, case_ops, option="--size")
    wanted = "the smallest" if vocab_size == 261 else "give more text; the largest"
    assert wanted in str(error.value)
    (number,) = re.findall(r"--size (\d+)", str(error.value))
    tokenizer = Tokenizer(train_tokenizer(TEXTS[name], int(number), case_ops))
    assert tokenizer.vocab_size == int(number)
    assert tokenizer.lossless
    beyond = int(number) + (-1 if vocab_size == 261 else 1)
    with pytest.raises(UserError, match=f"--model.vocab-size {number}"):
        train_tokenizer(TEXTS[name], beyond, case_ops)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"], ["\u2585"]])
def test_without_a_line_to_train_on(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no line to train a tokenizer on: give more text"):
        train_tokenizer(texts, 1024)


@given(
    st.lists(
        st.sampled_from(["a", " ", "\n", "\u2585", "\u65e5" * 1400, "word " * 900, "x" * 5000])
    )
)
@example(["\u65e5" * 1397 + "ab"])
def test_lines_hold_all_of_the_text_and_none_is_left_out(parts: list[str]) -> None:
    text = "".join(parts)
    lines = list(_lines(text))
    assert "".join(lines) == text.replace("\n", "").replace("\u2585", "")
    for line in lines:
        assert 0 < len(line.encode()) < 4192  # longer ones are skipped by SentencePiece
    short = [line for line in re.split("[\n\u2585]", text) if 0 < len(line.encode()) < 4192]
    assert all(short.count(line) <= lines.count(line) for line in short)


def test_long_lines_teach_as_much_as_short_ones() -> None:
    words = " ".join(ENGLISH).split()
    texts = {
        "short": [" ".join(words[i : i + 12]) for i in range(0, len(words), 12)],
        "long": [" ".join(words)],
        "with U+2585": [" ".join(words[i : i + 12]) + "\u2585" for i in range(0, len(words), 12)],
    }
    tokens = {
        name: len(Tokenizer(train_tokenizer(text, 600)).encode([" ".join(words)])[0])
        for name, text in texts.items()
    }
    assert max(tokens.values()) < 1.01 * min(tokens.values()), tokens


def test_many_characters_in_a_small_vocabulary() -> None:
    """The rarest characters are left to byte pieces, and the text is restored all the same."""
    rng = random.Random(1)
    rare = "".join(chr(0x4E00 + number) for number in range(300))
    texts = ["".join(rng.choices("\u3042\u3044\u3046\u3048\u304a", k=60)) for _ in range(400)]
    texts.append(rare)
    tokenizer = Tokenizer(train_tokenizer(texts, 400))
    assert tokenizer.decode_documents(tokenizer.encode([rare])[0]) == [rare]
    assert len(tokenizer.encode([rare])[0]) > 2 * len(rare)
    assert len(tokenizer.encode(texts[:1])[0]) < 60
