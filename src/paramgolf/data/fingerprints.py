"""Fingerprints: hashes that recognise texts regardless of spaces, case and punctuation.

Words are runs of letters and digits in lower case. A shingle is 13 words in a row. One shingle in
2^k is sampled, chosen by its hash: the same shingle is sampled in every text, or in none.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 13
SAMPLED_BITS = 4
"""One shingle in 2^4 is sampled."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_LONGEST_WORD = 1 << 12  # characters; a longer word counts as several
_GROUP_CHARS = 1 << 17  # hashed at once; fits the processor's caches

Hashes = NDArray[np.uint64]


class Fingerprints(NamedTuple):
    """Hashes of documents and their shingles."""

    documents: Hashes
    """(D,) a hash of each document's words; 0 without words."""
    shingles: Hashes
    """(S,) hashes of all shingles, in order."""
    document_of: NDArray[np.int64]
    """(S,) the document of each shingle."""

    @classmethod
    def joined(cls, parts: Iterable[Fingerprints]) -> Fingerprints:
        """Concatenate the fingerprints of consecutive documents, renumbered."""
        columns: list[Fingerprints] = [_NONE]
        count = 0
        for part in parts:
            columns.append(part._replace(document_of=part.document_of + count))
            count += len(part.documents)
        return cls(*(np.concatenate(arrays) for arrays in zip(*columns, strict=True)))


_NONE = Fingerprints(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))


@functools.cache
def _in_words() -> NDArray[np.bool_]:
    """Return which code points are letters or digits."""
    return np.array([chr(point).isalnum() for point in range(sys.maxunicode + 1)])


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(29))) * _MULTIPLIER
    return values ^ (values >> np.uint64(32))


@functools.cache
def _of_letters() -> Hashes:
    """Return a hash of each code point."""
    return _mixed(np.arange(1, sys.maxunicode + 2, dtype=np.uint64) * _MULTIPLIER)


def _sums(values: Hashes, begins: NDArray[np.int64]) -> Hashes:
    """Return sums modulo 2^64 of the runs of values that begin at `begins`."""
    return np.add.reduceat(values, begins) if len(begins) else np.zeros(0, np.uint64)


def _powers(count: int) -> Hashes:
    """Return odd multipliers for the positions in a word or document, (count,)."""
    return _mixed(np.arange(1, count + 1, dtype=np.uint64) * _MULTIPLIER) | np.uint64(1)


def _words(lowered: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the hashes of all words, and the document of each."""
    sizes = np.array([len(text) + 1 for text in lowered], np.int64)
    joined = "\n".join([*lowered, ""]).encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(joined, "<u4")
    inside = _in_words()[points]
    edges = np.flatnonzero(np.diff(inside, prepend=False))  # `joined` ends without a letter
    lengths = edges[1::2] - edges[::2]
    first = np.cumsum(lengths) - lengths  # of each word, among the characters of words
    places = np.flatnonzero(inside)
    in_word = np.arange(len(places)) - np.repeat(first, lengths)
    starts = first
    if lengths.max(initial=0) > _LONGEST_WORD:
        in_word %= _LONGEST_WORD
        starts = np.flatnonzero(in_word == 0)
    letters = _of_letters()[points[places]]
    hashes = _mixed(_sums(letters * _powers(_LONGEST_WORD)[in_word], starts))
    documents = np.searchsorted(np.cumsum(sizes), places[starts], side="right")
    return hashes, documents


def fingerprints(texts: Sequence[str]) -> Fingerprints:
    """Return the fingerprints of documents; about 50 MB per second on one core."""
    parts: list[Fingerprints] = []
    begin, size = 0, 0
    for number, text in enumerate(texts, start=1):
        size += len(text)
        if size >= _GROUP_CHARS or number == len(texts):
            parts.append(_of_group(texts[begin:number]))
            begin, size = number, 0
    return Fingerprints.joined(parts)


def _of_group(texts: Sequence[str]) -> Fingerprints:
    words, document_of = _words([text.lower() for text in texts])
    first = np.searchsorted(document_of, np.arange(len(texts) + 1))
    counts = np.diff(first)
    in_document = np.arange(len(words)) - np.repeat(first[:-1], counts)
    placed = words * _powers(int(counts.max(initial=0)))[in_document]
    documents = counts.astype(np.uint64)
    documents[counts > 0] += _sums(placed, first[:-1][counts > 0])
    count = max(0, len(words) - SHINGLE_WORDS + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(SHINGLE_WORDS):
        hashes = (hashes ^ words[offset : offset + count]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    whole = document_of[:count] == document_of[len(words) - count :]
    return Fingerprints(_mixed(documents), hashes[whole], document_of[:count][whole])


def shingles(text: str) -> Hashes:
    """Return the hashes of all shingles of a text, in order, (words - 12,); empty if shorter."""
    return fingerprints([text]).shingles


def is_sampled(hashes: Hashes, bits: int) -> NDArray[np.bool_]:
    """Return which shingles are in a sample of one in 2^bits."""
    return hashes & np.uint64((1 << bits) - 1) == 0


def sampled_shingles(*texts: str) -> Hashes:
    """Return the sampled shingles of documents, sorted and without repetition, (S,)."""
    hashes = fingerprints(texts).shingles
    return np.unique(hashes[is_sampled(hashes, SAMPLED_BITS)])
