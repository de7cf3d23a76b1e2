"""Overlap of a scored text with other texts: which of its documents are seen there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.fingerprints import (
    RUN_LETTERS,
    Fingerprints,
    Hashes,
    fingerprints,
)

SEEN_SHARE = 0.4
"""A document is seen if other texts contain at least this share of its runs."""
MAX_DOCUMENTS, MAX_BYTES = 0.02, 0.01
"""Shares of a text's documents, and of its bytes, that may be seen if it is held-out."""
FEW_DOCUMENTS = 5
"""So many seen documents are chance even if they are over the share, as one in fifty would be."""
_MIN_RUNS = 4
"""Sampled runs without which a document is not judged, unless it has fewer in all."""
_MAX_BYTES_PER_LETTER = 16
"""A document with more bytes is mostly signs that runs do not show, and is not judged."""
_BITS_PER_RUN = 32


class Overlap(NamedTuple):
    """How much of a text is seen in other texts."""

    documents: int = 0
    seen_documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of the documents."""
    seen_bytes: int = 0
    """UTF-8 bytes of the seen documents."""
    runs: int = 0
    seen_runs: int = 0
    """Runs that occur anywhere in the other texts."""
    unjudged_bytes: int = 0
    """UTF-8 bytes of the documents that cannot be judged, which the other figures leave out."""

    @classmethod
    def of(cls, prints: Fingerprints, found: NDArray[np.bool_]) -> Overlap:
        """Return the overlap of documents, leaving out those that cannot be judged; see `judge`."""
        judged, seen = judge(prints, found)
        figures = (
            judged.sum(),
            seen.sum(),
            prints.bytes[judged].sum(),
            prints.bytes[seen].sum(),
            len(found),
            found.sum(),
            prints.bytes[~judged].sum(),
        )
        return cls(*map(int, figures))

    @property
    def share(self) -> float | None:
        """Share of the runs that occur in the other texts; None: there are no runs."""
        return self.seen_runs / self.runs if self.runs else None

    @property
    def is_judged(self) -> bool:
        """Whether the documents that are not judged have at most `MAX_BYTES` of the bytes."""
        return self.runs > 0 and self.unjudged_bytes <= MAX_BYTES * (
            self.bytes + self.unjudged_bytes
        )

    @property
    def in_sample(self) -> bool:
        """Whether more documents, or more bytes, are seen than by chance."""
        return self.exceeds(MAX_BYTES)

    def exceeds(self, share: float) -> bool:
        """Return whether over this share of the bytes, or twice that of the documents, is seen."""
        most = max(FEW_DOCUMENTS, share * MAX_DOCUMENTS / MAX_BYTES * self.documents)
        return self.seen_documents > most or self.seen_bytes > share * self.bytes

    def all_seen(self) -> Overlap:
        """Return the overlap of the same text with itself."""
        return self._replace(
            seen_documents=self.documents, seen_bytes=self.bytes, seen_runs=self.runs
        )


def judge(
    prints: Fingerprints, found: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which documents have enough runs to be judged, and which are seen, (D,) each.

    Args:
        prints: of the documents, with all runs or a sample.
        found: (R,) which of their runs occur in the other texts.
    """
    count = np.bincount(prints.document_of, minlength=len(prints.counts))
    common = np.bincount(prints.document_of[found], minlength=len(prints.counts))
    max_letters = prints.counts + (RUN_LETTERS - 1) * (prints.counts > 0)
    judged = count >= np.minimum(prints.counts, _MIN_RUNS)
    judged &= prints.bytes <= _MAX_BYTES_PER_LETTER * max_letters
    return judged, judged & (count > 0) & (common >= SEEN_SHARE * count)


class RunIndex:
    """All runs of a scored text, to stream texts of any size past it.

    `mark(find(runs_of(texts)))`, on any number of threads that find and one that marks.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Take the documents of the scored text."""
        self._prints = fingerprints(texts)
        self._known, self._places = np.unique(self._prints.runs, return_inverse=True)
        self._seen = np.zeros(len(self._known), np.bool_)
        # A table of bits, by the first bits of a run, rules out most runs of other texts.
        self._bits = min(max((_BITS_PER_RUN * len(self._known)).bit_length(), 16), 32)
        self._table = np.zeros(1 << (self._bits - 3), np.uint8)
        cells, values = self._cells(self._known)
        cells, first = np.unique(cells, return_index=True)
        if len(cells):
            self._table[cells] = np.bitwise_or.reduceat(values, first)

    def _cells(self, runs: Hashes) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return byte and bit of the table for each run."""
        bits = (runs >> np.uint64(64 - self._bits)).astype(np.int64)
        return bits >> 3, np.left_shift(1, bits & 7).astype(np.uint8)

    def find(self, runs: Hashes) -> NDArray[np.int64]:
        """Return which runs of the scored text are among others, by their numbers."""
        cells, values = self._cells(runs)
        runs = runs[self._table[cells] & values != 0]
        runs.sort()
        places = np.searchsorted(self._known, runs)
        places[places == len(self._known)] = 0
        return places[self._known[places] == runs] if len(self._known) else places[:0]

    def mark(self, places: NDArray[np.int64]) -> None:
        """Note what `find` found in other documents."""
        self._seen[places] = True

    def result(self) -> Overlap:
        """Return the overlap with all documents added so far."""
        return Overlap.of(self._prints, self._seen[self._places])
