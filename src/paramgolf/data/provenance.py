"""Which texts shaped an artifact, and whether a scored text overlaps with them.

Texts are compared by their 13-word shingles, words taken in lower case without punctuation and
spacing, so that an edited space hides nothing. Of all shingles one in 2^k is kept, chosen by its
hash: the same shingle is kept or dropped in every text.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Sequence
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
SEEN_SHARE = 0.5
"""A document that shares more with what shaped the artifact is one of its documents, edited."""
_ENOUGH_SHINGLES = 4

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


def document_hash(text: str) -> int:
    """64 bits of the SHA-256 of a document's words, in lower case without spacing."""
    words = " ".join(_WORD.findall(text.lower()))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little")


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
class Text:
    """What is kept of one text: enough to recognise it, not to read it."""

    shingles: Shingles
    """Sampled hashes of its shingles, sorted, each once."""
    documents: Shingles
    """(D,) a hash of every document's words, in order; see `document_hash`."""
    sha256: str = ""
    """Of its documents; of its tokens, where it came as shards."""
    shards: tuple[str, ...] = ()
    """SHA-256 of every shard file."""

    @classmethod
    def of(cls, documents: Sequence[str], sha256: str = "") -> Text:
        """What is kept of these documents."""
        hashes = np.array([document_hash(text) for text in documents], np.uint64)
        return cls(union(map(sampled_shingles, documents)), hashes, sha256)


@dataclass(frozen=True)
class Provenance:
    """Every text that shaped an artifact, by its name ("train", "adapt", ...).

    It is the maker's word: only a rerun can verify it.
    """

    texts: dict[str, Text]
    uses: dict[str, str] = field(default_factory=dict)
    """What shaped the artifact ("training", "tokenizer", ...), and with which text."""
    sampled_bits: int = SAMPLED_BITS

    def of(self, *names: str) -> Provenance:
        """The part of it that concerns these texts."""
        return replace(self, texts={name: self.texts[name] for name in names})

    def label(self, texts: Iterable[str]) -> Label:
        """Label the score of a text, given as its documents."""
        scored = _sample(union(map(sampled_shingles, texts)), self.sampled_bits)
        if len(scored) == 0:
            return Label("unverified", None)
        share = float(self._known(scored).mean())
        return Label("in-sample" if share > IN_SAMPLE_SHARE else "held-out", share)

    def seen(self, texts: Sequence[str]) -> list[int]:
        """Which documents are among these texts: word for word, or half of their shingles."""
        known = union(text.documents for text in self.texts.values())
        hashes = np.array([document_hash(text) for text in texts], np.uint64)
        found = np.isin(hashes, known)
        for number in np.flatnonzero(~found).tolist():
            own = _sample(sampled_shingles(texts[number]), self.sampled_bits)
            if len(own) >= _ENOUGH_SHINGLES:
                found[number] = self._known(own).mean() >= SEEN_SHARE
        return np.flatnonzero(found).tolist()

    def _known(self, hashes: Shingles) -> NDArray[np.bool_]:
        known = np.zeros(len(hashes), dtype=bool)
        for text in self.texts.values():
            places = np.searchsorted(text.shingles, hashes)
            inside = places < len(text.shingles)
            known[inside] |= text.shingles[places[inside]] == hashes[inside]
        return known

    def save(self, path: Path) -> None:
        """Write the provenance; equal provenance gives equal bytes. Thinned out where too large."""
        bits = self.sampled_bits
        shingles = {name: text.shingles for name, text in self.texts.items()}
        while sum(map(len, shingles.values())) > MOST_SHINGLES:
            bits += 1
            shingles = {name: _sample(hashes, bits) for name, hashes in shingles.items()}
        arrays = {f"shingles.{name}": hashes for name, hashes in shingles.items()}
        arrays |= {f"documents.{name}": text.documents for name, text in self.texts.items()}
        notes = {
            "sampled_bits": bits,
            "uses": self.uses,
            "sha256": {name: text.sha256 for name, text in self.texts.items()},
            "shards": {name: list(text.shards) for name, text in self.texts.items()},
        }
        content = save(
            dict(sorted(arrays.items())), metadata={"notes": json.dumps(notes, sort_keys=True)}
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
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            bits = notes["sampled_bits"]
            if type(bits) is not int or any(a.dtype != np.uint64 for a in arrays.values()):
                raise ValueError("its fields have other types")
            texts = {
                name: Text(
                    arrays[f"shingles.{name}"],
                    arrays[f"documents.{name}"],
                    sha256,
                    tuple(notes["shards"][name]),
                )
                for name, sha256 in notes["sha256"].items()
            }
            return cls(texts, notes["uses"], bits)
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"cannot read the provenance {path}: {error}") from error
