"""CaseOps: every text is restored, operators are few, byte counts are those of the original."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paramgolf.data.caseops import CAPS, ESCAPE, NEXT, OPERATORS, TITLE, from_caseops, to_caseops
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError
from paramgolf.scoring.generate import streamed_text
from tests.property.test_tokenizer import CHARACTERS, TEXTS, sentencepiece_model

CASES = st.sampled_from([
    *OPERATORS, "a", "b", "A", "B", "Z", " ", "\u2581", "\u00e9", "\u00c9", "\u0130", "\n", "0",
    "The", "NASA", "iPhone", "McDonald", "HTMLParser", "I", " Hello", "\U0001f600",
])  # fmt: skip
CASED = st.one_of(TEXTS, st.lists(st.one_of(CASES, CHARACTERS), max_size=24).map("".join))


def decoded_by_hand(text: str) -> str:
    """The rules of the module as a state machine, character by character."""
    result, mode = "", ""
    for character in text:
        if mode == ESCAPE and character in OPERATORS:
            result += character
            mode = ""
        elif character in OPERATORS:
            mode = character
        elif character.isascii() and character.isalpha():
            result += character.upper() if mode in (TITLE, NEXT, CAPS) and mode else character
            mode = CAPS if mode == CAPS else ""
        else:
            result += character
            mode = ""
    return result


@pytest.fixture(scope="module")
def case_tokenizer(english: list[str]) -> Tokenizer:
    return Tokenizer(train_tokenizer(english, 470, case_ops=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all lower, 123", "all lower, 123"),
        ("The cat", TITLE + "the cat"),
        ("I, A", f"{TITLE}i, {TITLE}a"),
        ("NASA's USA", f"{CAPS}nasa's {CAPS}usa"),
        ("OK9A", f"{CAPS}ok9{TITLE}a"),
        ("iPhone", f"i{NEXT}phone"),
        ("McDonald", f"{TITLE}mc{NEXT}donald"),
        ("HTMLParser", f"{CAPS}html{NEXT}parser"),
        ("ABc", f"{TITLE}a{NEXT}bc"),
        ("iOS", f"i{CAPS}os"),
        ("\u00c9A", f"\u00c9{TITLE}a"),
        (f"x{TITLE}A{ESCAPE}", f"x{ESCAPE}{TITLE}{TITLE}a{ESCAPE}{ESCAPE}"),
    ],
)
def test_canonical_forms(text: str, expected: str) -> None:
    assert to_caseops(text) == expected
    assert from_caseops(expected) == text


@settings(max_examples=500)
@given(CASED)
@example(OPERATORS * 2 + "AbC" + ESCAPE)
def test_every_text_is_restored(text: str) -> None:
    encoded = to_caseops(text)
    assert not any("A" <= character <= "Z" for character in encoded)
    assert from_caseops(encoded) == decoded_by_hand(encoded) == text
    without = "".join(c for c in from_caseops(encoded) if c not in OPERATORS)
    assert "".join(c for c in encoded if c not in OPERATORS) == "".join(
        c.lower() if c.isascii() else c for c in without
    )


@settings(max_examples=500)
@given(CASED)
def test_any_sequence_is_decoded_from_left_to_right(text: str) -> None:
    """Whatever a model generates: by the rules, canonical in one step, and never revised."""
    decoded = from_caseops(text)
    assert decoded == decoded_by_hand(text)
    assert from_caseops(to_caseops(decoded)) == decoded
    for end in range(len(text)):
        assert decoded.startswith(from_caseops(text[:end]))


def test_no_word_can_be_written_with_fewer_operators() -> None:
    """Against all ways to put operators into words of up to five letters."""
    for length in range(1, 6):
        fewest: dict[str, int] = {}
        for operators in product(("", TITLE, CAPS, NEXT), repeat=length):
            written = "".join(operator + "x" for operator in operators)
            word, count = decoded_by_hand(written), sum(map(len, operators))
            fewest[word] = min(count, fewest.get(word, count))
        assert len(fewest) == 2**length
        for word, count in fewest.items():
            assert len(to_caseops(word)) == length + count


@settings(max_examples=500)
@given(CASED)
@example("")
@example(f" {TITLE} {ESCAPE}{ESCAPE}\u2581{TITLE}A \u2581B")
def test_tokens_give_the_text_and_its_bytes(case_tokenizer: Tokenizer, text: str) -> None:
    tokens = case_tokenizer.encode([text])[0]
    assert case_tokenizer.decode_documents(tokens) == [text]
    assert int(case_tokenizer.token_bytes(tokens).sum()) == len(text.encode())


@settings(max_examples=200)
@given(st.lists(CASED, min_size=1, max_size=5), st.data())
def test_streams_cut_anywhere(
    case_tokenizer: Tokenizer, texts: list[str], data: st.DataObject
) -> None:
    stream = np.concatenate(case_tokenizer.encode(texts))
    assert case_tokenizer.decode_documents(stream) == texts
    beginning = stream[: data.draw(st.integers(1, len(stream)))]
    decoded = "".join(case_tokenizer.decode_documents(beginning))
    if "\ufffd" not in decoded:  # else cut inside a character of several bytes
        assert int(case_tokenizer.token_bytes(beginning).sum()) == len(decoded.encode())


def test_every_token_in_turn(case_tokenizer: Tokenizer, english: list[str]) -> None:
    text = " " + english[3][:1500] + f" HTMLParser iOS {TITLE}{ESCAPE}{ESCAPE}x {CAPS}Q"
    tokens = case_tokenizer.encode([text])[0]
    counted = np.cumsum(case_tokenizer.token_bytes(tokens))
    for end in range(1, len(tokens)):
        assert counted[end - 1] == len(case_tokenizer.decode(tokens[: end + 1].tolist()).encode())


@settings(max_examples=200)
@given(st.lists(st.integers(4, 469), max_size=24))
def test_whatever_a_model_generates_has_its_bytes(
    case_tokenizer: Tokenizer, generated: list[int]
) -> None:
    """Operators in any order, but without byte pieces, which may be invalid UTF-8."""
    processor = case_tokenizer._processor
    tokens = [case_tokenizer.bos, *(token for token in generated if not processor.is_byte(token))]
    text = case_tokenizer.decode(tokens)
    counted = case_tokenizer.token_bytes(np.array(tokens, np.uint16))
    assert int(counted.sum()) == len(text.encode())


@settings(max_examples=300)
@given(st.lists(st.integers(2, 469), max_size=24))
def test_streamed_text_is_never_revised(case_tokenizer: Tokenizer, generated: list[int]) -> None:
    whole = case_tokenizer.decode(generated)
    streamed = "".join(streamed_text(iter(generated), case_tokenizer))
    assert whole.startswith(streamed)
    assert set(whole[len(streamed) :]) <= {"\ufffd"}  # characters that are not complete


def test_operators_of_a_word_wait_for_its_letters(case_tokenizer: Tokenizer) -> None:
    tokens = case_tokenizer.encode(["NASA"])[0].tolist()
    parts = [list(streamed_text(iter(tokens[1:end]), case_tokenizer)) for end in (2, len(tokens))]
    assert parts[0] == []
    assert "".join(parts[1]) == "NASA"


def test_which_tokenizers_have_case_ops(
    case_tokenizer: Tokenizer, tokenizer: Tokenizer, english: list[str]
) -> None:
    lines = [line for text in english[:20] for line in text.split("\n") if line]
    assert case_tokenizer.case_ops
    assert not tokenizer.case_ops
    assert not Tokenizer(
        sentencepiece_model(lines, user_defined_symbols=list(OPERATORS[:3]))
    ).case_ops
    # Characters of the training text are not operators.
    plain = Tokenizer(sentencepiece_model([*lines, *OPERATORS * 9], character_coverage=1.0))
    assert not plain.case_ops
    assert plain.decode_documents(plain.encode([OPERATORS + "Ab"])[0]) == [OPERATORS + "Ab"]
    with pytest.raises(UserError, match=r"mine, piece \d+ mixes an operator"):
        Tokenizer(
            sentencepiece_model(lines, user_defined_symbols=[*OPERATORS, TITLE + "the"]), "mine"
        )


@settings(max_examples=200)
@given(CASED)
def test_foreign_tokenizers(foreign: Tokenizer, text: str) -> None:
    """The operators as the only additional pieces, after the space that is added to a text."""
    text = text.replace("\u2581", "")
    tokens = foreign.encode([text])[0]
    (decoded,) = foreign.decode_documents(tokens)
    assert int(foreign.token_bytes(tokens).sum()) == len(decoded.encode())


@pytest.fixture(scope="module")
def foreign(english: list[str]) -> Tokenizer:
    lines = [to_caseops(line) for text in english[:20] for line in text.split("\n") if line]
    return Tokenizer(sentencepiece_model(lines, user_defined_symbols=list(OPERATORS)))
