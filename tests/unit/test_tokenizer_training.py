"""What the training of a tokenizer says when a text does not allow its number of pieces."""

from __future__ import annotations

import re
from pydoc_data.topics import topics

import pytest

from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
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


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"], ["x y " * 2000]])
def test_without_a_line_to_train_on(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no line to train a tokenizer on: give more text"):
        train_tokenizer(texts, 1024)
