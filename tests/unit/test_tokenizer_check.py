"""A foreign tokenizer: what is read of it, and what is refused before the library sees it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pydoc_data.topics import topics

import numpy as np
import pytest
import sentencepiece

from paramgolf.data import tokenizer_check
from paramgolf.data.tokenizer_check import check_tokenizer
from paramgolf.data.tokenizer_model import BYTE, CONTROL, NORMAL, UNKNOWN, parse_model
from paramgolf.errors import UserError


def _trained(**options: object) -> bytes:
    lines = [line for text in topics.values() for line in text.split("\n") if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=400, minloglevel=2, **options
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def plain() -> bytes:
    return _trained(model_type="bpe", normalization_rule_name="identity", byte_fallback=True)


@pytest.fixture(scope="module")
def normalizing() -> bytes:
    return _trained(model_type="unigram", normalization_rule_name="nmt_nfkc")


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in wire format."""
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize("model", ["plain", "normalizing"])
def test_it_reads_what_the_library_reads(model: str, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(model)
    parsed = check_tokenizer(content)
    library = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert [p.text for p in parsed.pieces] == [library.id_to_piece(i) for i in range(400)]
    assert [p.score for p in parsed.pieces] == [library.get_score(i) for i in range(400)]
    types = [p.type for p in parsed.pieces]
    assert [kind == BYTE for kind in types] == [library.is_byte(i) for i in range(400)]
    assert [kind == CONTROL for kind in types] == [library.is_control(i) for i in range(400)]
    assert [kind == UNKNOWN for kind in types] == [library.is_unknown(i) for i in range(400)]


@pytest.mark.parametrize("rule", ["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"])
def test_the_named_rules_are_read(rule: str) -> None:
    spec = sentencepiece.SentencePieceNormalizer(rule_name=rule).serialized_model_proto()
    parsed = parse_model(spec + _field(1, _field(1, b"?") + b"\x18\x02"))
    assert parsed.normalizer.name == rule
    assert bool(parsed.normalizer.charsmap) == (rule != "identity")
    assert parsed.denormalizer is None


def _first_piece(model: bytes) -> tuple[int, int]:
    """Begin and end of the text of the last piece of a model that is ASCII."""
    match = list(re.finditer(rb"\x0a.\x0a(.)[a-z]{2,}\x15", model))[-1]
    return match.start(1) + 1, match.end() - 1


def _not_utf8(model: bytes) -> bytes:
    begin, _ = _first_piece(model)
    return model[:begin] + b"\xff" + model[begin + 1 :]


def _surrogate(model: bytes) -> bytes:
    return model + _field(1, _field(1, b"\xed\xa0\x80") + b"\x18\x01")


MUTATIONS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a piece that is no UTF-8": (_not_utf8, "can't decode byte 0xff"),
    "a surrogate": (_surrogate, "can't decode byte 0xed"),
    "an empty piece": (lambda m: m + _field(1, b"\x0a\x00"), "piece 400 is (''"),
    "a piece without text": (lambda m: m + _field(1, b"\x18\x01"), "piece 400 is (''"),
    "a piece twice": (lambda m: m + 2 * _field(1, _field(1, b"zzz")), "equal"),
    "an unknown type": (
        lambda m: m + _field(1, _field(1, b"zzz") + b"\x18\x07"),
        "('zzz', 0.0, 7)",
    ),
    "an unknown field": (lambda m: m + _field(1, _field(1, b"zzz") + b"\x20\x01"), "field 4"),
    "a score of nan": (
        lambda m: m + _field(1, _field(1, b"zzz") + b"\x15\x00\x00\xc0\x7f"),
        "nan",
    ),
    "a score of inf": (
        lambda m: m + _field(1, _field(1, b"zzz") + b"\x15\x00\x00\x80\x7f"),
        "inf",
    ),
    "a second normaliser": (lambda m: m + _field(3, b""), "field 3 of it is repeated"),
    "a text as a type": (lambda m: m + _field(1, _field(1, b"zzz") + _field(3, b"x")), "field 3"),
    "an unknown message": (lambda m: m + _field(9, b"x"), "field 9"),
    "a group": (lambda m: m + b"\x0b", "damaged"),
    "truncated": (lambda m: m[:-1], "truncated"),
    "truncated in a piece": (lambda m: m[: _first_piece(m)[0]], "truncated"),
    "a huge length": (lambda m: m + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
    "an endless varint": (lambda m: m + b"\xff" * 20, "truncated"),
    "no model": (lambda m: b"GIF89a" + m, "not a SentencePiece model"),
    "too many pieces": (
        lambda m: m + b"".join(_field(1, _field(1, b"%d" % i)) for i in range(70_000)),
        "65536",
    ),
    "too large": (lambda m: m + _field(9, bytes(16 << 20)), "16,777,216"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_damaged_model_is_refused(name: str, plain: bytes) -> None:
    mutate, reason = MUTATIONS[name]
    with pytest.raises(UserError, match=re.escape(reason)) as refused:
        parse_model(mutate(plain), "mine.model")
    assert str(refused.value).startswith("mine.model")
    assert "\n" not in str(refused.value)


def test_a_rule_that_points_out_of_its_trie_is_refused(normalizing: bytes) -> None:
    charsmap = parse_model(normalizing).normalizer.charsmap
    size = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap, "<u4", size // 4, offset=4).copy()
    inner, value = int(np.flatnonzero(units < 2**31)[0]), int(np.flatnonzero(units >= 2**31)[0])
    for place, unit in ((inner, 0x7FFFFC00), (value, 0xFFFFFFFF)):
        damaged = units.copy()
        damaged[place] = unit
        other = charsmap[:4] + damaged.tobytes() + charsmap[4 + size :]
        model = normalizing.replace(charsmap, other)
        assert model != normalizing
        with pytest.raises(UserError, match="normaliser's rule is damaged"):
            check_tokenizer(model)
    for other in (b"\xff" + charsmap[1:], charsmap[:-1] + b"x"):
        with pytest.raises(UserError, match="is damaged"):
            check_tokenizer(normalizing.replace(charsmap, other))


def test_a_model_that_the_library_refuses_is_refused() -> None:
    only_unknown = _field(1, _field(1, b"?") + bytes([0x18, UNKNOWN]))
    broken_bytes = only_unknown + _field(1, _field(1, b"<0x00>") + bytes([0x18, BYTE]))
    assert len(parse_model(broken_bytes).pieces) == 2
    with pytest.raises(UserError, match=r"mine.model is not a SentencePiece model: ."):
        check_tokenizer(broken_bytes, "mine.model")
    assert NORMAL == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os;os.kill(os.getpid(),11)", "crashes"),
        ("import time;time.sleep(60)", "does not finish"),
        ("x=bytes(1<<33)", "MemoryError"),
    ],
)
def test_a_library_that_crashes_or_hangs_is_one_line(
    code: str, reason: str, plain: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tokenizer_check._TRIAL.split("sys.path", 1)[0] + "\n" + code
    monkeypatch.setattr(tokenizer_check, "_TRIAL", trial)
    monkeypatch.setattr(tokenizer_check, "_SECONDS", 0.5)
    with pytest.raises(UserError, match=reason):
        check_tokenizer(plain, code)
