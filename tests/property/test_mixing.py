"""The code file's coding: what goes in comes out, on any machine, in few bytes."""

from __future__ import annotations

import bz2
import math
import random
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

import paramgolf
from paramgolf.codefile.mixing import decode, encode


@settings(max_examples=60)
@given(
    st.one_of(
        st.binary(max_size=300).map(lambda data: bytes(byte & 127 for byte in data)),
        st.text("()[]{}a_9\n", max_size=300).map(str.encode),
        st.tuples(st.sampled_from([b"a", b"\x00", b"\x7f\x7f", b"f(a)"]), st.integers(0, 2000)).map(
            lambda pair: pair[0] * pair[1]
        ),
    )
)
@example(b"")
@example(b"\x00" * 1000)
@example(b"\x7f" * 1000)
def test_round_trip(text: bytes) -> None:
    coded = encode(text)
    assert decode(coded, len(text)) == text
    assert not set(coded) & set(b"\0\n\r'\\")


def test_noise_takes_what_it_must() -> None:
    """7 bits a character, in digits of log2(251) bits."""
    source = random.Random(5)
    text = bytes(source.randrange(128) for _ in range(3000))
    least = len(text) * 7 / math.log2(251)
    assert least < len(encode(text)) < 1.05 * least + 20


def test_source_takes_less_than_with_bzip2() -> None:
    text = Path(paramgolf.__file__).with_name("rundir.py").read_text().encode("ascii")
    assert len(encode(text)) < 0.92 * len(bz2.compress(text))


def test_no_table_depends_on_the_last_bit_of_a_logarithm() -> None:
    """What is rounded is nowhere near the middle between two integers."""
    logits = [math.log((p + 0.5) / (4095.5 - p)) * 256 for p in range(4096)]
    chances = [65536 / (1 + math.exp(-logit / 256)) for logit in range(-2047, 2048) if logit]
    for value in (*logits, *chances):
        assert abs(value - math.floor(value) - 0.5) > 1e-6
