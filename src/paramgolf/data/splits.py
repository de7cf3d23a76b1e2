"""Which split a document is in: decided by a hash of its letters, or among few documents by rank.

Validation text must not overlap with the other splits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.fingerprints import fingerprints
from paramgolf.data.overlap import Overlap
from paramgolf.data.shards import SPLITS
from paramgolf.errors import UserError

TRAIN, VAL, ADAPT = range(len(SPLITS))

Ends = tuple[float, float]
"""Where validation and adaptation end in the range of the hashes, 0 to 1; training is the rest."""


def assign_splits(hashes: NDArray[np.uint64], ends: Ends) -> NDArray[np.uint8]:
    """Assign documents to splits by the hashes of their letters."""
    return _assign(_places(hashes), ends)


def _places(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the place of each hash in the range of all hashes, 0 to 1."""
    return hashes.astype(np.float64) / 2.0**64


def _assign(places: NDArray[np.float64], ends: Ends) -> NDArray[np.uint8]:
    splits = np.full(len(places), TRAIN, np.uint8)
    splits[places < ends[1]] = ADAPT
    splits[places < ends[0]] = VAL
    return splits


class SplitFinder:
    """Finds the ends of the splits: the given shares, unless a split would then be empty.

    A split would be empty only if there are few documents. Then the documents are sorted by the
    hashes of their letters, and a document of the largest split goes to the empty one, so that each
    has at least one: training first, then validation, then adaptation. Documents with the same
    letters stay together, and those without letters do not count.
    """

    def __init__(self, val_share: float, adapt_share: float) -> None:
        """Expect no documents in a split whose share is 0."""
        self._shares: Ends = (val_share, val_share + adapt_share)
        self._empty = {TRAIN}
        self._empty |= {VAL} if val_share else set()
        self._empty |= {ADAPT} if adapt_share else set()
        self._wanted = [split for split in (TRAIN, VAL, ADAPT) if split in self._empty]
        self._places = np.zeros(0)

    def add(self, texts: Sequence[str]) -> None:
        """Take more documents into account; does nothing once no split is empty."""
        if self._empty:
            places = _places(fingerprints(texts).documents)
            self._places = np.union1d(self._places, places[places > 0])
            self._empty -= set(_assign(places[places > 0], self._shares).tolist())

    @property
    def documents(self) -> int:
        """Number of documents with different letters; only a lower limit if no split is empty."""
        return len(self._places)

    def ends(self) -> Ends:
        """Return the ends of the splits."""
        if not self._empty:
            return self._shares
        places, wanted = self._places, self._wanted
        if len(places) <= len(wanted):
            sizes = np.isin(range(len(SPLITS)), wanted[: len(places)]).astype(int)
        else:
            sizes = np.bincount(_assign(places, self._shares), minlength=len(SPLITS))
            for split in self._empty:
                sizes[np.argmax(sizes)] -= 1
                sizes[split] += 1
        val, adapt = int(sizes[VAL]), int(sizes[ADAPT])
        return self._end(val), self._end(val + adapt)

    def _end(self, count: int) -> float:
        """Return the end of the first `count` documents; training always has the last."""
        return float(self._places[count]) if count else 0.0


def require_disjoint(
    overlap: Overlap, max_share: float, in_both: int, candidates: Sequence[str]
) -> None:
    """Raise if a validation text overlaps too much with the other splits.

    Args:
        overlap: of the validation text.
        max_share: largest share of its bytes in seen documents; of its documents, twice that.
        in_both: number of documents that are, character by character, in the sources of both.
        candidates: names of documents that are seen; a name may come twice.

    Raises:
        UserError: naming two documents.
    """
    if not in_both and not overlap.exceeds(max_share):
        return
    remedy = "take them out of the sources"
    if not in_both:
        remedy += ", or allow it with --max-overlap (its scores are then in-sample)"
    raise UserError(
        f"the validation text overlaps with the training text: {in_both:,} documents are in both, "
        f"{overlap.seen_documents:,} of {overlap.documents:,} are seen there, which is "
        f"{overlap.seen_bytes / max(1, overlap.bytes):.2%} of the bytes (at most {max_share:.2%} "
        f"are allowed): {' and '.join([*dict.fromkeys(candidates)][:2])}; {remedy}"
    )
