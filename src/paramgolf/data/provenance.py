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
    Hashes,
    Sampling,
    fingerprints,
)
from paramgolf.data.overlap import Overlap
from paramgolf.errors import UserError
from paramgolf.runtime.files import write_bytes

VERSION = 3
"""Version of the file format and of how runs are hashed."""
MAX_RUNS = 1 << 21
"""If a corpus has more sampled runs than this, the sampling rate is halved until it fits."""
TOKENIZER_GIVEN = "not known: the tokenizer was given"
"""In the place of the text that a tokenizer was trained on."""
_UNSALTED, _NOTHING = Sampling(0), Overlap()
_MAX_BITS = 48
_MAX_FILE_BYTES = 1 << 26


def union(parts: Iterable[Hashes]) -> Hashes:
    """Return all hashes of the parts, sorted and without repetition."""
    hashes = np.sort(np.concatenate([np.zeros(0, np.uint64), *parts]))
    # `np.unique` hashes integers first, which takes ten times as long.
    return hashes[np.diff(hashes, prepend=~hashes[:1]) != 0]


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
    "in-sample"; or "unverified" if too little could be compared."""
    overlap: Overlap = _NOTHING
    """Of the text with those that shaped the artifact."""

    @classmethod
    def of(cls, overlap: Overlap) -> Label:
        """Return the label that follows from an overlap."""
        if overlap.in_sample:
            return cls("in-sample", overlap)
        return cls("held-out" if overlap.is_judged else "unverified", overlap)

    @classmethod
    def of_run(cls, overlaps: dict[str, Overlap], adapted_on: Sequence[str]) -> Label:
        """Return the label of a run's own scores.

        Args:
            overlaps: of the scored text, as `RunTexts.overlaps` states them.
            adapted_on: the splits that the weights were adapted on; "val" is the scored text.
        """
        if "val" in adapted_on:
            return cls.of(overlaps["train"].all_seen())
        return cls.of(overlaps["+".join(["train", *adapted_on])])

    def adaptive(self) -> Label:
        """Return the label of the same text under an adaptive predictor; in-sample stays so."""
        return replace(self, name="score-first") if self.name == "held-out" else self


@dataclass(frozen=True)
class Text:
    """Hashes of one text: enough to recognise it, not to read it."""

    runs: Hashes
    """Hashes of its sampled runs, sorted and without repetition."""
    documents: int
    """Number of its documents."""
    sha256: str = ""
    """Of its documents; of its tokens if it was given as shards."""
    shards: tuple[str, ...] = ()
    """SHA-256 of each shard file."""
    sampling: Sampling = _UNSALTED
    """Which runs are kept."""

    @classmethod
    def of(cls, documents: Sequence[str], sha256: str = "", salt: int = 0) -> Text:
        """Return the hashes of these documents."""
        gathering = Gathering(salt)
        gathering.add(len(documents), fingerprints(documents, Sampling(salt)).runs)
        return gathering.text(sha256)

    def thinned(self, bits: int) -> Text:
        """Return the text with fewer runs, one in 2^bits."""
        sampling = self.sampling._replace(bits=bits)
        return replace(self, runs=self.runs[sampling.includes(self.runs)], sampling=sampling)


class Gathering:
    """Collects the hashes of one text, a batch of documents at a time, in bounded memory."""

    def __init__(self, salt: int) -> None:
        self.sampling = Sampling(salt)
        """Which runs are kept so far."""
        self._runs: list[Hashes] = []
        self._size = self._documents = 0

    def add(self, documents: int, runs: Hashes) -> None:
        """Add so many documents and their runs, of which those that are sampled are enough."""
        self._documents += documents
        self._runs.append(runs[self.sampling.includes(runs)])
        self._size += len(self._runs[-1])
        while self._size > 2 * MAX_RUNS:
            everything = union(self._runs)
            if len(everything) > MAX_RUNS:
                self.sampling = self.sampling._replace(bits=self.sampling.bits + 1)
                everything = everything[self.sampling.includes(everything)]
            self._runs, self._size = [everything], len(everything)

    def text(self, sha256: str = "", shards: Sequence[str] = ()) -> Text:
        """Return the text of all documents added so far."""
        return Text(union(self._runs), self._documents, sha256, tuple(shards), self.sampling)


@dataclass(frozen=True)
class Provenance:
    """All texts that shaped an artifact, by name ("train", "adapt", ...), with one salt.

    Self-reported: only rerunning the job can verify it.
    """

    texts: dict[str, Text]
    uses: dict[str, str] = field(default_factory=dict)
    """Purpose ("training", "tokenizer", ...) -> name of the text that was used for it."""

    @property
    def sampling(self) -> Sampling:
        """Which runs are kept of every text."""
        return max((text.sampling for text in self.texts.values()), default=_UNSALTED)

    def of(self, *names: str) -> Provenance:
        """Return the provenance restricted to these texts."""
        return replace(self, texts={name: self.texts[name] for name in names})

    def label(self, texts: Sequence[str]) -> Label:
        """Return the label for a score of a text, given as its documents."""
        prints = fingerprints(texts, self.sampling)
        return Label.of(Overlap.of(prints, self.are_known(prints.runs)))

    def are_known(self, runs: Hashes) -> NDArray[np.bool_]:
        """Return which of these sampled runs occur in at least one of the texts."""
        known = np.zeros(len(runs), dtype=bool)
        for text in self.texts.values():
            known |= are_among(runs, text.runs)
        return known

    def save(self, path: Path) -> None:
        """Write the provenance; equal provenance gives equal bytes."""
        write_bytes(path, self.content())

    def fitted(self) -> Provenance:
        """Return the provenance with one sampling, thinned out if it is too large for a file."""
        bits = self.sampling.bits
        texts = {name: text.thinned(bits) for name, text in self.texts.items()}
        while sum(len(text.runs) for text in texts.values()) > MAX_RUNS:
            bits += 1
            texts = {name: text.thinned(bits) for name, text in texts.items()}
        return replace(self, texts=texts)

    def content(self) -> bytes:
        """Return the bytes of the file, thinned out if too large."""
        fitted = self.fitted()
        (salt, bits), texts = fitted.sampling, fitted.texts
        notes = {
            "version": VERSION,
            "salt": salt,
            "sampled_bits": bits,
            "uses": self.uses,
            "texts": {
                name: {"documents": text.documents, "sha256": text.sha256, "shards": text.shards}
                for name, text in texts.items()
            },
        }
        arrays = {name: text.runs for name, text in sorted(texts.items())}
        return save(arrays, metadata={"notes": json.dumps(notes, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> Provenance:
        """Read what `save` wrote; a file that differs from that in any way is refused.

        Raises:
            UserError: if the file is damaged or not a provenance.
        """
        try:
            if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
                raise ValueError(f"not a file of at most {_MAX_FILE_BYTES:,} bytes")
            with safe_open(path, framework="np") as file:
                notes = json.loads(file.metadata()["notes"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if notes["version"] != VERSION:
                raise ValueError(f"expected version {VERSION}; prepare or build the text again")
            sampling = Sampling(notes["salt"], notes["sampled_bits"])
            texts: dict[str, Text] = {}
            for name, of_text in notes["texts"].items():
                documents, sha256, shards = map(of_text.get, ("documents", "sha256", "shards"))
                runs = arrays[name].astype(np.uint64)
                if not (runs[:-1] < runs[1:]).all():
                    raise ValueError("its hashes are not in rising order")
                texts[name] = Text(runs, documents, sha256, tuple(shards), sampling)
            known = cls(texts, notes["uses"])
            numbers = (*sampling, *(text.documents for text in texts.values()))
            words = [*known.uses.values()]
            for text in texts.values():
                words += [text.sha256, *text.shards]
            typed = all(type(n) is int and n >= 0 for n in numbers)
            typed &= all(type(word) is str for word in words)
            if not typed or not SAMPLED_BITS <= sampling.bits <= _MAX_BITS:
                raise ValueError("a field has the wrong type or is out of range")
            if known.content() != path.read_bytes():
                raise ValueError("it is not as it was written")
            return known
        except (
            OSError,
            SafetensorError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            ValueError,
            RecursionError,
        ) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cannot read the provenance {path}: {reason}") from error
