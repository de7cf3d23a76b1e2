"""Completions: what stops a text, what is held back until then, and where tokens begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.serve.completions import parts, prompt_part
from paramgolf.serve.reading import Read


@pytest.fixture(scope="module", params=[False, True])
def either_tokenizer(request: pytest.FixtureRequest, english: list[str]) -> Tokenizer:
    """Without and with CaseOps."""
    return Tokenizer(train_tokenizer(english, 470, case_ops=request.param))


def reads(tokens: list[int], given: bool = False) -> list[Read]:
    return [Read(token, given, 0.0, 1, [], []) for token in tokens]


_TEXT = st.text(st.sampled_from("abAB \u00e9\u4e2d\n."), max_size=25)


@given(text=_TEXT, stops=st.lists(st.text("abA\u00e9 .", min_size=1, max_size=4), max_size=3))
def test_a_text_ends_before_what_stops_it(
    either_tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    """Compared with a search in the text as it is after every token."""
    tokenizer = either_tokenizer
    tokens = tokenizer.encode([text])[0][1:].tolist()
    found = list(parts(iter(reads(tokens)), tokenizer, tuple(stops), 7))
    expected, finish = text, "length"
    for count in range(len(tokens) + 1):
        before = tokenizer.decode(tokens[:count]).rstrip("\ufffd")
        places = [place for place in map(before.find, stops) if place >= 0]
        if places:
            expected, finish = before[: min(places)], "stop"
            break
    assert "".join(part.text for part in found) == expected
    assert [part.finish for part in found] == [None] * (len(found) - 1) + [finish]
    pairs = [pair for part in found for pair in part.reads]
    assert [read.token for read, _ in pairs] == tokens[: len(pairs)]
    assert [begin for _, begin in pairs] == sorted(begin for _, begin in pairs)
    if not stops:
        assert len(pairs) == len(tokens)
    if pairs and expected:
        assert 7 <= pairs[0][1] <= pairs[-1][1] <= 7 + len(expected)


def test_the_end_of_the_document_ends_the_text(either_tokenizer: Tokenizer) -> None:
    tokenizer = either_tokenizer
    tokens = tokenizer.encode(["One.", "Two."])
    both = [*tokens[0][1:].tolist(), *tokens[1].tolist()]
    found = list(parts(iter(reads(both)), tokenizer, (), 0))
    assert "".join(part.text for part in found) == "One."
    assert found[-1].finish == "stop"


@given(text=_TEXT)
def test_tokens_of_the_prompt_begin_where_the_text_before_them_ends(
    either_tokenizer: Tokenizer, text: str
) -> None:
    tokenizer = either_tokenizer
    tokens = tokenizer.encode([text])[0][1:].tolist()
    part = prompt_part(text, reads(tokens, given=True), tokenizer)
    assert part.text == text
    for number, (_, begin) in enumerate(part.reads):
        before = tokenizer.decode(tokens[:number])
        if "\ufffd" not in before:
            assert begin == len(before)
