"""A text that is cut by bytes: those bytes under any tokenizer, and the documents behind them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramgolf.config import DataConfig
from paramgolf.data.streams import Stream, cut, require_counted, require_restored
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError

TEXTS = st.lists(
    st.one_of(st.text(st.sampled_from("aeT \n\u00e9\u2581\U0001f600"), max_size=12), st.text()),
    min_size=1,
    max_size=6,
).filter(any)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "caseops"])
def any_tokenizer(request: pytest.FixtureRequest, english: list[str]) -> Tokenizer:
    return Tokenizer(train_tokenizer(english, 450, request.param))


@given(texts=TEXTS, share=st.floats(0, 1.1))
def test_a_text_is_cut_at_a_byte(any_tokenizer: Tokenizer, texts: list[str], share: float) -> None:
    content = "".join(texts).encode()
    size = 1 + int(share * len(content))
    whole = Stream("", np.concatenate(any_tokenizer.encode(texts)), texts)
    first, behind = cut(whole, DataConfig(val_bytes=size), any_tokenizer)
    assert "".join(first.texts) == content[:size].decode(errors="ignore")
    assert np.array_equal(first.tokens, np.concatenate(any_tokenizer.encode(first.texts)))
    require_restored(first, any_tokenizer)
    require_counted(first, any_tokenizer)
    begun = len(first.texts)
    assert first.texts[:-1] == texts[: begun - 1]
    assert len("".join(texts[: begun - 1]).encode()) < size or size >= len(content)
    rest = DataConfig(val_bytes=size, val_part="rest")
    if any(texts[begun:]):
        assert behind is not None
        assert behind.texts == texts[begun:]
        assert np.array_equal(behind.tokens, np.concatenate(any_tokenizer.encode(behind.texts)))
        scored, left = cut(whole, rest, any_tokenizer)
        assert left is None
        assert scored.texts == behind.texts
        assert np.array_equal(scored.tokens, behind.tokens)
    else:
        assert behind is None
        with pytest.raises(UserError, match="no document is behind the cut"):
            cut(whole, rest, any_tokenizer)
