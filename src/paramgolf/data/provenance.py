"""Provenance: which texts shaped an artifact, and whether a scored text overlaps with them."""

from __future__ import annotations

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
"""Version of the file format and of how words are hashed."""
MAX_SHINGLES = 1 << 21
"""If a corpus has more sampled shingles than this, the sampling rate is halved until it fits."""
TOKENIZER_GIVEN = "not known: the tokenizer was given"
"""In the place of the text that a tokenizer was trained on."""
IN_SAMPLE_SHARE = 0.01
"""A text that shares more than this of its sampled shingles with the texts that shaped the artifact
is in-sample. Disjoint documents of one corpus share 0.1 to 0.3 % (quotations, boilerplate)."""


def union(parts: Iterable[Hashes]) -> Hashes:
    """Return all hashes of the parts, sorted and without repetition."""
    arrays = list(parts)
    return np.unique(np.concatenate(arrays)) if arrays else np.zeros(0, dtype=np.uint64)


def are_among(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Return which hashes are among the known ones, which must be sorted."""
    places = np.searchsorted(known, hashes)
    found = places < len(known)
    found[found] = known[places[found]] == hashes[found]
    return found


@dataclass(frozen=True)
class Label:
    """The label of a score, shown beside every number."""

    name: str
    """"held-out"; "score-first" if the predictor learned from the text after scoring it;
    "in-sample"; or "unverified" if there was nothing to compare."""
    overlap_share: float | None
    """Share of the text's sampled shingles that also occur in the texts that shaped the artifact.
    """

    def adaptive(self) -> Label:
        """Return the label of the same text under an adaptive predictor; in-sample stays so."""
        return replace(self, name="score-first") if self.name == "held-out" else self


@dataclass(frozen=True)
class Text:
    """Hashes of one text: enough to recognise it, not to read it."""

    shingles: Hashes
    """Hashes of its sampled shingles, sorted and without repetition."""
    documents: Hashes
    """(D,) a hash of each document's words, in order."""
    sha256: str = ""
    """Of its documents; of its tokens if it was given as shards."""
    shards: tuple[str, ...] = ()
    """SHA-256 of each shard file."""
    sampled_bits: int = SAMPLED_BITS
    """One shingle in 2^bits is sampled."""

    @classmethod
    def of(cls, documents: Sequence[str], sha256: str = "") -> Text:
        """Return the hashes of these documents."""
        gathering = Gathering()
        gathering.add(fingerprints(documents))
        return gathering.text(sha256)

    def thinned(self, bits: int) -> Text:
        """Return the text with fewer sampled shingles, one in 2^bits."""
        if bits == self.sampled_bits:
            return self
        kept = self.shingles[is_sampled(self.shingles, bits)]
        return replace(self, shingles=kept, sampled_bits=bits)


class Gathering:
    """Collects the hashes of one text, a batch of documents at a time, in bounded memory."""

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
        """Return the text of all documents added so far."""
        documents = np.concatenate([np.zeros(0, np.uint64), *self._documents])
        return Text(union(self._shingles), documents, sha256, tuple(shards), self._bits)


@dataclass(frozen=True)
class Provenance:
    """All texts that shaped an artifact, by name ("train", "adapt", ...).

    Self-reported: only rerunning the job can verify it.
    """

    texts: dict[str, Text]
    uses: dict[str, str] = field(default_factory=dict)
    """Purpose ("training", "tokenizer", ...) -> name of the text that was used for it."""

    @property
    def sampled_bits(self) -> int:
        """One shingle in 2^bits is sampled of every text."""
        return max((text.sampled_bits for text in self.texts.values()), default=SAMPLED_BITS)

    def of(self, *names: str) -> Provenance:
        """Return the provenance restricted to these texts."""
        return replace(self, texts={name: self.texts[name] for name in names})

    def label(self, texts: Iterable[str]) -> Label:
        """Return the label for a score of a text, given as its documents."""
        share = self.share(sampled_shingles(*texts))
        if share is None:
            return Label("unverified", None)
        return Label("in-sample" if share > IN_SAMPLE_SHARE else "held-out", share)

    def share(self, sampled: Hashes) -> float | None:
        """Return the share of a text's sampled shingles that are known; None: it has none."""
        scored = sampled[is_sampled(sampled, self.sampled_bits)]
        return float(self.are_known(scored).mean()) if len(scored) else None

    def are_known(self, shingles: Hashes) -> NDArray[np.bool_]:
        """Return which of these sampled shingles occur in at least one of the texts."""
        known = np.zeros(len(shingles), dtype=bool)
        for text in self.texts.values():
            known |= are_among(shingles, text.shingles)
        return known

    def save(self, path: Path) -> None:
        """Write the provenance, thinned out if too large; equal provenance gives equal bytes."""
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
            UserError: if the file is damaged or not a provenance.
        """
        try:
            with safe_open(path, framework="np") as file:
                notes = json.loads(file.metadata()["notes"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if notes.get("version") != VERSION:
                raise ValueError(f"expected version {VERSION}; build it again")
            bits = notes["sampled_bits"]
            if type(bits) is not int or any(a.dtype != np.uint64 for a in arrays.values()):
                raise ValueError("a field has the wrong type")
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
