"""Which texts shaped an artifact, and whether a scored text overlaps with them.

Texts are compared by their 13-word shingles, words taken in lower case without punctuation and
spacing, so that an edited space hides nothing. Of all shingles one in 2^k is kept, chosen by its
hash: the same shingle is kept or dropped in every text.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from paramgolf.errors import UserError
from paramgolf.rundir import write_bytes

SHINGLE_WORDS = 13
SAMPLED_BITS = 4
"""One shingle in 2^4 is sampled, fewer if a corpus would pass MOST_SHINGLES."""
MOST_SHINGLES = 1 << 21
IN_SAMPLE_SHARE = 0.01
"""A text that shares more of its sampled shingles with the artifact's own is in-sample. Disjoint
documents of one corpus share 0.1 to 0.3 % (quotations, boilerplate)."""

_WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Shingles = NDArray[np.uint64]


def shingles(text: str) -> Shingles:
    """Hashes of all shingles of a text, in its order; (words - 12,), empty for shorter texts."""
    words = [zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())]
    count = max(0, len(words) - SHINGLE_WORDS + 1)
    values = np.array(words, dtype=np.uint64)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        hashes = (hashes ^ values[offset : offset + count]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return hashes


def sampled_shingles(text: str) -> Shingles:
    """Hashes of the sampled shingles of a text, sorted, each once; (S,)."""
    return np.unique(_sample(shingles(text), SAMPLED_BITS))


def _sample(hashes: Shingles, bits: int) -> Shingles:
    return hashes[hashes & np.uint64((1 << bits) - 1) == 0]


def union(parts: Iterable[Shingles]) -> Shingles:
    """All shingles of the parts, sorted, each once."""
    arrays = list(parts)
    return np.unique(np.concatenate(arrays)) if arrays else np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True)
class Label:
    """What a score says of the scored text; it stands beside every number."""

    name: str
    """"held-out", "score-first" where the predictor learned from what it had scored, "in-sample",
    or "unverified" where nothing could be compared."""
    overlap_share: float | None
    """Share of the text's sampled shingles that shaped the artifact."""

    def adaptive(self) -> Label:
        """The label of the same text under an adaptive predictor: in-sample wins."""
        return replace(self, name="score-first") if self.name == "held-out" else self


@dataclass(frozen=True)
class Provenance:
    """Sampled shingles of every text that shaped an artifact, by role ("train", "adapt")."""

    shingles: dict[str, Shingles]
    sampled_bits: int = SAMPLED_BITS
    text_sha256: dict[str, str] = field(default_factory=dict)

    def of(self, *roles: str) -> Provenance:
        """The part of it that concerns these roles."""
        return Provenance(
            {role: self.shingles[role] for role in roles},
            self.sampled_bits,
            {role: self.text_sha256[role] for role in roles},
        )

    def label(self, texts: Iterable[str]) -> Label:
        """Label the score of a text, given as its documents."""
        scored = _sample(union(map(sampled_shingles, texts)), self.sampled_bits)
        if len(scored) == 0:
            return Label("unverified", None)
        seen = np.zeros(len(scored), dtype=bool)
        for known in self.shingles.values():
            seen |= np.isin(scored, known, assume_unique=True)
        share = float(seen.mean())
        return Label("in-sample" if share > IN_SAMPLE_SHARE else "held-out", share)

    def save(self, path: Path) -> None:
        """Write the provenance; equal provenance gives equal bytes. Thinned out where too large."""
        bits, shingles = self.sampled_bits, self.shingles
        while sum(map(len, shingles.values())) > MOST_SHINGLES:
            bits += 1
            shingles = {role: _sample(hashes, bits) for role, hashes in shingles.items()}
        notes = {"sampled_bits": bits, "text_sha256": self.text_sha256}
        content = save(
            dict(sorted(shingles.items())), metadata={"notes": json.dumps(notes, sort_keys=True)}
        )
        write_bytes(path, content)

    @classmethod
    def load(cls, path: Path) -> Provenance:
        """Read what `save` wrote.

        Raises:
            UserError: if the file is damaged or foreign.
        """
        try:
            with safe_open(path, framework="np") as file:
                notes = json.loads(file.metadata()["notes"])
                shingles = {role: file.get_tensor(role) for role in file.keys()}  # noqa: SIM118
            bits = notes["sampled_bits"]
            if type(bits) is not int or any(s.dtype != np.uint64 for s in shingles.values()):
                raise ValueError("its fields have other types")
            return cls(shingles, bits, notes["text_sha256"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"cannot read the provenance {path}: {error}") from error
