"""Overlap of a validation text with the texts of the other splits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from paramgolf.data.fingerprints import Fingerprints, is_sampled
from paramgolf.data.provenance import Provenance, are_among, union
from paramgolf.errors import UserError

COPY_SHARE = 0.5
"""A document with at least this share of its sampled shingles in other texts is an edited copy."""
_MIN_SHINGLES = 4
"""Documents with fewer sampled shingles are too short to be recognised as edited copies."""
_EXAMPLES = 2


class Overlap(NamedTuple):
    """How much of a validation text is also in the other splits."""

    shingle_share: float
    """Of its sampled shingles."""
    documents: int
    """Documents that are copies, exact or edited."""


class CopyFinder:
    """Finds documents that are copies of documents of the known texts, exact or edited."""

    def __init__(self, known: Provenance) -> None:
        self._known = known
        self._documents = union(text.documents for text in known.texts.values())

    def find(self, prints: Fingerprints) -> list[int]:
        """Return which documents have the words of a known one, or half of their shingles."""
        sampled = is_sampled(prints.shingles, self._known.sampled_bits)
        document_of, size = prints.document_of[sampled], len(prints.documents)
        found = self._known.are_known(prints.shingles[sampled])
        count = np.bincount(document_of, minlength=size)
        common = np.bincount(document_of, found, minlength=size)
        edited = (count >= _MIN_SHINGLES) & (common >= COPY_SHARE * count)
        has_words = prints.documents != 0
        same = has_words & are_among(prints.documents, self._documents)
        return np.flatnonzero(edited | same).tolist()


def require_disjoint(
    overlap: Overlap, max_share: float, in_both: int, candidates: Iterable[str]
) -> None:
    """Raise if a validation text overlaps too much with the other splits.

    Args:
        overlap: of the validation text.
        max_share: largest share of its shingles that the other splits may contain.
        in_both: number of documents that are, character by character, in the sources of both.
        candidates: names of documents that overlap, the clearest cases first; a name may come
            twice.

    Raises:
        UserError: naming two documents.
    """
    if not in_both and overlap.shingle_share <= max_share:
        return
    examples: dict[str, None] = {}
    for name in candidates:
        examples[name] = None
        if len(examples) == _EXAMPLES:
            break
    remedy = "take them out of the sources"
    if not in_both:
        remedy += ", or allow it with --max-overlap (its scores are then in-sample)"
    raise UserError(
        f"the validation text overlaps with the training text: {in_both:,} documents are in both, "
        f"{overlap.documents:,} have half of their 13-word shingles there, and "
        f"{overlap.shingle_share:.2%} of all its shingles are there (at most {max_share:.2%} are "
        f"allowed): {' and '.join(examples)}; {remedy}"
    )
