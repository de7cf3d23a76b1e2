"""Fingerprints: hashes that recognise a text in spite of edits.

A text is reduced to its letters: compatibility forms, accents and case are removed, letters that
look like a Latin one become that one, and all but letters and digits is left out. A run is 24
letters in a row, which one edit changes only where it is. A document of fewer letters has one run,
all of it.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RUN_LETTERS = 24
SAMPLED_BITS = 4
"""At most one run in 2^4 is kept where runs are sampled."""

Hashes = NDArray[np.uint64]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_GROUP_CHARS = 1 << 16  # hashed at once; larger arrays are slower
_BLOCK_LETTERS = 1 << 15  # whose hashes fit the processor's caches
_POINTS = 0x40000  # no letter has a code point above
_PAD = "\0"
"""Follows each document, so that a short one has a run and no run spans two."""
_SEVERAL = np.uint64(1)
"""In the place of a letter's hash: the code point stands for several letters."""

_LOOK_ALIKES = (
    "a\u0430\u03b1 b\u0432\u044c\u03b2 c\u0441\u03f2 d\u0501 e\u0435\u0454\u04bd\u03b5 "
    "f\u03dd g\u050d\u0581 h\u043d\u04bb\u0570 i\u0456\u03b9 j\u0458\u03f3\u0575 "
    "k\u043a\u03ba l\u04cf\u01c0 m\u043c n\u043f\u03b7\u0578\u057c "
    "o\u043e\u04e9\u03bf\u03c3\u0585 p\u0440\u03c1 q\u051b\u0563\u0566 r\u0433 s\u0455 "
    "t\u0442\u03c4 u\u03c5\u03bc\u057d v\u0475\u03bd w\u0461\u051d\u03c9\u0561 "
    "x\u0445\u04b3\u03c7 y\u0443\u04af\u03b3 z\u03b6"
)
"""Cyrillic, Greek and Armenian letters in lower case that look like the first of their group."""
_LATIN = r"LATIN .*\b([A-Z])( WITH .*)?"
"""Names of variants of a Latin letter, such as small capitals."""
_INVISIBLE = "\u0640\u07fa\u115f\u1160"
"""Letters by Unicode that show nothing or stretch a word."""


class Sampling(NamedTuple):
    """Which runs are kept: one in 2^bits, chosen by its hash and the salt."""

    salt: int
    """64 bits that depend on all of the text, so that nobody can write for a sample."""
    bits: int = SAMPLED_BITS

    def includes(self, runs: Hashes) -> NDArray[np.bool_]:
        """Return which runs are kept: the same in every text."""
        return ((runs ^ np.uint64(self.salt)) * _MULTIPLIER) >> np.uint64(64 - self.bits) == 0


def salt_of(*digests: str) -> int:
    """Return the salt that follows from the hashes of all texts, or of their files."""
    return int.from_bytes(hashlib.sha256("\n".join(digests).encode()).digest()[:8], "little")


class Fingerprints(NamedTuple):
    """Hashes of documents and their runs."""

    documents: Hashes
    """(D,) a hash of each document's letters; 0 without letters."""
    bytes: NDArray[np.int64]
    """(D,) UTF-8 bytes of each document."""
    counts: NDArray[np.int64]
    """(D,) number of runs of each document, before they are sampled."""
    runs: Hashes
    """(R,) hashes of the runs, in order."""
    document_of: NDArray[np.int64]
    """(R,) the document of each run."""

    def sampled(self, sampling: Sampling) -> Fingerprints:
        """Return the fingerprints with a sample of their runs."""
        kept = sampling.includes(self.runs)
        return self._replace(runs=self.runs[kept], document_of=self.document_of[kept])

    @classmethod
    def joined(cls, parts: Iterable[Fingerprints]) -> Fingerprints:
        """Concatenate the fingerprints of consecutive documents, renumbered."""
        columns: list[Fingerprints] = [_NONE]
        count = 0
        for part in parts:
            columns.append(part._replace(document_of=part.document_of + count))
            count += len(part.documents)
        return cls(*(np.concatenate(arrays) for arrays in zip(*columns, strict=True)))


_NONE = Fingerprints(*(np.zeros(0, kind) for kind in (np.uint64, int, int, np.uint64, int)))


def fingerprints(texts: Sequence[str], sampling: Sampling | None = None) -> Fingerprints:
    """Return the fingerprints of documents, with all runs (None) or a sample."""
    parts = map(_of_group, groups(texts))
    return Fingerprints.joined(part.sampled(sampling) if sampling else part for part in parts)


def groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Divide documents into groups whose runs are hashed at once."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= _GROUP_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _of_group(texts: Sequence[str]) -> Fingerprints:
    runs, counts = runs_of(texts)
    documents = counts.astype(np.uint64)
    some = counts > 0
    if len(runs):
        documents[some] += np.add.reduceat(runs, (np.cumsum(counts) - counts)[some])
    sizes = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], np.int64)
    document_of = np.repeat(np.arange(len(texts)), counts)
    return Fingerprints(_mixed(documents), sizes, counts, runs, document_of)


def runs_of(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the hashes of all runs of documents, and the number of runs of each document."""
    pads = _PAD * (RUN_LETTERS - 1)
    letters = _letters("".join([text.replace(_PAD, "") + pads for text in texts]))
    ends = np.flatnonzero(letters == _of_points()[0])[:: len(pads)]
    sizes = np.diff(ends, prepend=-len(pads)) - len(pads)
    counts = np.maximum(np.minimum(sizes, 1), sizes - len(pads))
    kept_and_not = np.stack([counts, sizes + len(pads) - counts], 1).ravel()
    is_run = np.repeat(np.arange(len(kept_and_not)) % 2 == 0, kept_and_not)
    hashes = _windows(letters)
    return hashes[is_run[: len(hashes)]], counts


def _letters(text: str) -> Hashes:
    """Return the hashes of all letters of a text."""
    table = _of_points()
    if text.isascii():
        found = table[np.frombuffer(text.encode(), np.uint8)]
        return found[found != 0]
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    found = table.take(points, mode="clip")
    if (found == _SEVERAL).any():
        return _letters(unicodedata.normalize("NFKD", text))
    return found[found != 0]


def _windows(letters: Hashes) -> Hashes:
    """Return the hash of each window of 24 letters, (N - 23,)."""
    count = max(0, len(letters) - RUN_LETTERS + 1)
    hashes = np.empty(count, np.uint64)
    for begin in range(0, count, _BLOCK_LETTERS):
        h = letters[begin : begin + _BLOCK_LETTERS + RUN_LETTERS - 1]
        for n in (1, 2, 4):
            h = h[:-n] * _power(n) + h[n:]
        eight = h
        h = (h[:-8] * _power(8) + h[8:])[:-8] * _power(8) + eight[16:]
        hashes[begin : begin + _BLOCK_LETTERS] = _mixed(h)
    return hashes


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(int(_MULTIPLIER), exponent, 1 << 64))


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(29))) * _MULTIPLIER
    return values ^ (values >> np.uint64(32))


@functools.cache
def _of_points() -> Hashes:
    """Return a hash of the letter that each code point stands for; 0: none, 1: several."""
    alike = {other: group[0] for group in _LOOK_ALIKES.split() for other in group[1:]}
    alike |= dict.fromkeys(_INVISIBLE, "")

    def letter(char: str) -> str:
        """Return the letter that a decomposed character stands for, if any."""
        digit, lower = unicodedata.decimal(char, None), char.lower()
        if digit is not None or not char.isalnum():
            return "" if digit is None else str(digit)
        latin = char < "\u3000" and re.fullmatch(_LATIN, unicodedata.name(char, ""))
        if latin:
            return latin[1].lower()
        is_modifier = unicodedata.category(char) == "Lm" and char < "\u0370"
        return "" if is_modifier else alike.get(lower, lower)

    decomposed = (unicodedata.normalize("NFKD", chr(point)) for point in range(_POINTS))
    bases = ["".join(map(letter, chars)) for chars in decomposed]
    codes = np.array([ord(base) if len(base) == 1 else 0 for base in bases], np.uint64)
    hashes = _mixed((codes + np.uint64(1)) * _MULTIPLIER) * (codes != 0)
    hashes[[len(base) > 1 for base in bases]] = _SEVERAL
    hashes[0] = _mixed(np.array([_MULTIPLIER]))[0]  # the pad
    hashes[-1] = 0  # stands for all code points above
    return hashes
