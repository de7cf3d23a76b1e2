"""Which texts shaped an artifact, and whether a scored text overlaps with them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from paramgolf.data.fingerprints import (
    SAMPLED_BITS,
    Fingerprints,
    Hashes,
    fingerprints,
    is_sampled,
    sampled_shingles,
)
from paramgolf.errors import UserError
from paramgolf.runtime.files import write_bytes

VERSION = 2
"""Of the file, and of how words are hashed."""
MAX_SHINGLES = 1 << 21
"""Fewer are sampled of a corpus that would pass this."""
IN_SAMPLE_SHARE = 0.01
"""A text that shares more of its sampled shingles with the artifact's own is in-sample. Disjoint
documents of one corpus share 0.1 to 0.3 % (quotations, boilerplate)."""
SEEN_SHARE = 0.5
"""A document that shares more with what shaped the artifact is one of its documents, edited."""
_ENOUGH_SHINGLES = 4


def union(parts: Iterable[Hashes]) -> Hashes:
    """All hashes of the parts, sorted, each once."""
    arrays = list(parts)
    return np.unique(np.concatenate(arrays)) if arrays else np.zeros(0, dtype=np.uint64)


def _are_among(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which hashes are among the known ones, which are sorted."""
    places = np.searchsorted(known, hashes)
    found = places < len(known)
    found[found] = known[places[found]] == hashes[found]
    return found


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

    shingles: Hashes
    """Sampled hashes of its shingles, sorted, each once."""
    documents: Hashes
    """(D,) a hash of every document's words, in order."""
    sha256: str = ""
    """Of its documents; of its tokens, where it came as shards."""
    shards: tuple[str, ...] = ()
    """SHA-256 of every shard file."""
    sampled_bits: int = SAMPLED_BITS
    """One shingle in 2^bits is sampled."""

    @classmethod
    def of(cls, documents: Sequence[str], sha256: str = "") -> Text:
        """What is kept of these documents."""
        gathering = Gathering()
        gathering.add(fingerprints(documents))
        return gathering.text(sha256)

    def thinned(self, bits: int) -> Text:
        """The same with fewer shingles, one in 2^bits."""
        if bits == self.sampled_bits:
            return self
        kept = self.shingles[is_sampled(self.shingles, bits)]
        return replace(self, shingles=kept, sampled_bits=bits)


class Gathering:
    """Gathers what is kept of one text, some documents at a time, in bounded memory."""

    def __init__(self) -> None:
        self._bits = SAMPLED_BITS
        self._shingles: list[Hashes] = []
        self._documents: list[Hashes] = []
        self._size = 0

    def add(self, found: Fingerprints) -> None:
        """Add documents."""
        self._documents.append(found.documents)
        self._shingles.append(found.shingles[is_sampled(found.shingles, self._bits)])
        self._size += len(self._shingles[-1])
        while self._size > 2 * MAX_SHINGLES:
            everything = union(self._shingles)
            if len(everything) > MAX_SHINGLES:
                self._bits += 1
                everything = everything[is_sampled(everything, self._bits)]
            self._shingles, self._size = [everything], len(everything)

    def text(self, sha256: str = "", shards: Sequence[str] = ()) -> Text:
        """What was gathered."""
        documents = np.concatenate([np.zeros(0, np.uint64), *self._documents])
        return Text(union(self._shingles), documents, sha256, tuple(shards), self._bits)


@dataclass(frozen=True)
class Provenance:
    """Every text that shaped an artifact, by its name ("train", "adapt", ...).

    It is the maker's word: only a rerun can verify it.
    """

    texts: dict[str, Text]
    uses: dict[str, str] = field(default_factory=dict)
    """What shaped the artifact ("training", "tokenizer", ...), and with which text."""

    @property
    def sampled_bits(self) -> int:
        """One shingle in 2^bits is sampled of every text."""
        return max((text.sampled_bits for text in self.texts.values()), default=SAMPLED_BITS)

    def of(self, *names: str) -> Provenance:
        """The part of it that concerns these texts."""
        return replace(self, texts={name: self.texts[name] for name in names})

    def label(self, texts: Iterable[str]) -> Label:
        """Label the score of a text, given as its documents."""
        share = self.share(sampled_shingles(*texts))
        if share is None:
            return Label("unverified", None)
        return Label("in-sample" if share > IN_SAMPLE_SHARE else "held-out", share)

    def share(self, sampled: Hashes) -> float | None:
        """Share of a text's sampled shingles that are known; None: it has none."""
        scored = sampled[is_sampled(sampled, self.sampled_bits)]
        return float(self._known(scored).mean()) if len(scored) else None

    def seen(self, texts: Sequence[str]) -> list[int]:
        """Which documents are among these texts: word for word, or half of their shingles."""
        return self.seen_of(fingerprints(texts))

    def seen_of(self, prints: Fingerprints) -> list[int]:
        """The same, of documents that are given by their fingerprints."""
        sampled = is_sampled(prints.shingles, self.sampled_bits)
        of, size = prints.document_of[sampled], len(prints.documents)
        count = np.bincount(of, minlength=size)
        common = np.bincount(of, self._known(prints.shingles[sampled]), minlength=size)
        edited = (count >= _ENOUGH_SHINGLES) & (common >= SEEN_SHARE * count)
        has_words = prints.documents != 0
        same = has_words & _are_among(prints.documents, self._documents)
        return np.flatnonzero(edited | same).tolist()

    @functools.cached_property
    def _documents(self) -> Hashes:
        return union(text.documents for text in self.texts.values())

    def _known(self, hashes: Hashes) -> NDArray[np.bool_]:
        known = np.zeros(len(hashes), dtype=bool)
        for text in self.texts.values():
            known |= _are_among(hashes, text.shingles)
        return known

    def save(self, path: Path) -> None:
        """Write the provenance; equal provenance gives equal bytes. Thinned out where too large."""
        bits = self.sampled_bits
        texts = {name: text.thinned(bits) for name, text in self.texts.items()}
        while sum(len(text.shingles) for text in texts.values()) > MAX_SHINGLES:
            bits += 1
            texts = {name: text.thinned(bits) for name, text in texts.items()}
        arrays = {f"shingles.{name}": text.shingles for name, text in texts.items()}
        arrays |= {f"documents.{name}": text.documents for name, text in texts.items()}
        notes = {
            "version": VERSION,
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
            if notes.get("version") != VERSION:
                raise ValueError(f"it is not of version {VERSION}; make it again")
            bits = notes["sampled_bits"]
            if type(bits) is not int or any(a.dtype != np.uint64 for a in arrays.values()):
                raise ValueError("its fields have other types")
            texts = {
                name: Text(
                    arrays[f"shingles.{name}"],
                    arrays[f"documents.{name}"],
                    sha256,
                    tuple(notes["shards"][name]),
                    bits,
                )
                for name, sha256 in notes["sha256"].items()
            }
            return cls(texts, notes["uses"])
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"cannot read the provenance {path}: {error}") from error
