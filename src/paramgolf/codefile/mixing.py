"""Coding of a program's text: seven contexts, mixed, and an arithmetic coder (lpaq, M. Mahoney).

Every bit of a character is predicted from what followed the last 1, 2, 3, 4 and 6 characters, the
word so far, and the word so far with what called or opened the brackets around it. The predictions'
logits are added with weights that are learned on the way, for each bit after the bits of the
character before it, and by how often the bracket context was seen. Encoder and decoder run the same
function, so they cannot drift apart. The decoder travels in the code file, so it imports next to
nothing. It computes with integers and with sums and products of floats, the same everywhere;
logarithms are rounded first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from math import exp, log

_DIGITS = bytes(digit for digit in range(256) if digit not in b"\0\n\r'\\")
"""The bytes of coded text: those that stand for themselves in a string of a file in Latin-1."""
_BASE = 251
_BLOCK = 32
_LEAST_SPAN = 1 << 31

_MOST_SEEN = 6
"""The state of a context is how often it was seen, up to this, and a probability in 1/4096."""
_UNKNOWN = 2048
_LEARNING_RATE = 6e-3 / 65536


def decode(coded: bytes, length: int) -> bytes:
    """The text of `length` characters of which `encode` made `coded`."""
    numbers = map(_DIGITS.index, coded)
    offset, span = 0, 1

    def code_bit(chance: int) -> int:
        nonlocal offset, span
        while span < _LEAST_SPAN:
            offset = offset * _BASE + next(numbers, 0)
            span *= _BASE
        part = (span >> 16) * chance
        if offset < part:
            span = part
            return 1
        offset -= part
        span -= part
        return 0

    return _code(length, code_bit)


def encode(text: bytes) -> bytes:
    """A text in ASCII as a number between 0 and 1 in base 251, its digits written as bytes."""
    bits = (character >> place & 1 for character in text for place in range(6, -1, -1))
    blocks: list[int] = []
    count, low, span = 0, 0, 1

    def code_bit(chance: int) -> int:
        nonlocal count, low, span
        while span < _LEAST_SPAN:
            if count == _BLOCK:
                blocks.append(low)
                count = low = 0
            count, low, span = count + 1, low * _BASE, span * _BASE
        part = (span >> 16) * chance
        if bit := next(bits):
            span = part
        else:
            low += part
            span -= part
        return bit

    _code(len(text), code_bit)
    scale = _BASE ** (_BLOCK - count)
    least, most = low * scale, (low + span) * scale - 1
    units = (_BASE**places for places in range(_BLOCK, -1, -1))
    # The number of the interval that ends in the most zeros, which need not be written.
    blocks.append(next(end for unit in units if (end := most - most % unit) >= least))
    digits, carry = bytearray(), 0
    for block in reversed(blocks):
        carry += block
        for _ in range(_BLOCK):
            carry, digit = divmod(carry, _BASE)
            digits.append(_DIGITS[digit])
    return bytes(reversed(digits)).rstrip(_DIGITS[:1])


def _code(length: int, code_bit: Callable[[int], int]) -> bytes:
    """Code a text, character by character.

    Long, since it is unrolled: the inside runs for each of some 700,000 bits when the file starts.

    Args:
        length: number of characters.
        code_bit: takes the probability, in 1/65536, that a bit is 1, and gives the bit.
    """
    logits, after_0, after_1 = [], [], []
    for seen in range(_MOST_SEEN + 1):
        state = min(seen + 1, _MOST_SEEN) << 12
        for chance in range(4096):
            logits.append(round(log((chance + 0.5) / (4095.5 - chance)) * 256) / 256)
            after_0.append(state + chance - chance * 8 // (8 * seen + 9))
            after_1.append(state + chance + (4095 - chance) * 8 // (8 * seen + 9))
    # Indexed by logits in 1/256, below 0 as well; what is beyond the table is an IndexError.
    indices = (min(max(logit, -2047), 2047) for logit in (*range(16384), *range(-16384, 0)))
    chances = [round(65536 / (1 + exp(-logit / 256))) for logit in indices]
    # By node, and by whether the bracket context was seen never, 1 to 4 times, or more.
    weights = [(0.2,) * 7] * (128 * 3)
    table_a, table_b, table_c, table_d, table_e, table_f, table_g = (
        defaultdict(dict[int, int]) for _ in range(7)
    )
    text = bytearray()
    history = word = last = 0
    brackets = [0]
    for _ in range(length):
        seen_a = table_a[history & 0xFF]
        seen_b = table_b[history & 0xFFFF]
        seen_c = table_c[history & 0xFFFFFF]
        seen_d = table_d[history]
        seen_e = table_e[word]
        seen_f = table_f[
            brackets[-1] * 31 + word * 0x9E37 + (history & 0xFF) * 77777 & 0xFFFFFFFFFF
        ]
        seen_g = table_g[history & 0xFFFFFFFF]
        node = 1
        for _ in range(7):
            state_a = seen_a.get(node, _UNKNOWN)
            state_b = seen_b.get(node, _UNKNOWN)
            state_c = seen_c.get(node, _UNKNOWN)
            state_d = seen_d.get(node, _UNKNOWN)
            state_e = seen_e.get(node, _UNKNOWN)
            state_f = seen_f.get(node, _UNKNOWN)
            state_g = seen_g.get(node, _UNKNOWN)
            logit_a = logits[state_a]
            logit_b = logits[state_b]
            logit_c = logits[state_c]
            logit_d = logits[state_d]
            logit_e = logits[state_e]
            logit_f = logits[state_f]
            logit_g = logits[state_g]
            mixer = node * 3 + (state_f + 12288 >> 14)
            w_a, w_b, w_c, w_d, w_e, w_f, w_g = weights[mixer]
            logit = w_a * logit_a + w_b * logit_b + w_c * logit_c
            logit += w_d * logit_d + w_e * logit_e + w_f * logit_f + w_g * logit_g
            chance = chances[int(logit * 256)]
            bit = code_bit(chance)
            step = ((bit << 16) - chance) * _LEARNING_RATE
            weights[mixer] = (
                w_a + step * logit_a, w_b + step * logit_b, w_c + step * logit_c,
                w_d + step * logit_d, w_e + step * logit_e, w_f + step * logit_f,
                w_g + step * logit_g,
            )  # fmt: skip
            after = after_1 if bit else after_0
            seen_a[node] = after[state_a]
            seen_b[node] = after[state_b]
            seen_c[node] = after[state_c]
            seen_d[node] = after[state_d]
            seen_e[node] = after[state_e]
            seen_f[node] = after[state_f]
            seen_g[node] = after[state_g]
            node += node + bit
        character = node & 127
        text.append(character)
        history = (history << 8 | character) & 0xFFFFFFFFFFFF
        if chr(character).isalnum() or character == 95:
            word = last = (word + character) * 0x2F0B4C47 & 0xFFFFFFFF
            continue
        word = 0
        if character in b"([{":
            brackets.append(last * 31 + character)
        elif character in b")]}" and brackets[1:]:
            brackets.pop()
        elif character == 10:
            brackets = [0]
        else:
            last = character
    return bytes(text)
