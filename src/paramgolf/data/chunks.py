"""Chunks of an encoded text of any size; each is a file, so that a build can resume."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from paramgolf.data.documents import Document
from paramgolf.data.encoding import Encoded
from paramgolf.data.fingerprints import Fingerprints
from paramgolf.data.shards import SPLITS
from paramgolf.errors import UserError
from paramgolf.runtime.files import write_bytes

_RECENT_KEYS = 1 << 18

Stream = NDArray[np.uint16]


class Chunk(NamedTuple):
    """One part of the input, encoded, without empty documents and duplicates."""

    digest: str
    """SHA-256 of the texts read, dropped ones included."""
    encoded: Encoded
    splits: NDArray[np.uint8]
    """(D,) index into `SPLITS`."""
    names: list[str]
    """(D,) names of the documents in the validation split; empty for others."""

    def tokens_of(self, split: str) -> Stream:
        """Return the tokens of the documents in a split."""
        return self.encoded.tokens[np.repeat(self._is_in(split), self.encoded.lengths)]

    def prints_of(self, split: str) -> Fingerprints:
        """Return the fingerprints of the documents in a split, numbered from 0."""
        wanted, prints = self._is_in(split), self.encoded.prints
        kept = wanted[prints.document_of]
        numbers = (np.cumsum(wanted) - 1)[prints.document_of[kept]]
        return Fingerprints(
            prints.documents[wanted],
            prints.bytes[wanted],
            prints.counts[wanted],
            prints.runs[kept],
            numbers,
        )

    def _is_in(self, split: str) -> NDArray[np.bool_]:
        return self.splits == SPLITS.index(split)

    def save(self, path: Path) -> None:
        """Write the chunk."""
        tokens, lengths, prints = self.encoded
        arrays = {"tokens": tokens, "lengths": lengths, "splits": self.splits, **prints._asdict()}
        notes = json.dumps({"digest": self.digest, "names": self.names})
        write_bytes(path, save(arrays, metadata={"notes": notes}))

    @classmethod
    def load(cls, path: Path) -> Chunk:
        """Read what `save` wrote.

        Raises:
            UserError: if the file is damaged.
        """
        try:
            with safe_open(path, framework="np") as file:
                notes = json.loads(file.metadata()["notes"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            prints = Fingerprints(*(arrays[name] for name in Fingerprints._fields))
            encoded = Encoded(arrays["tokens"], arrays["lengths"], prints)
            return cls(notes["digest"], encoded, arrays["splits"], notes["names"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}, left by an interrupted build, is damaged: {error}; remove it and build "
                "again"
            ) from error


class SeenDocuments:
    """A set of texts, by 64 bits of their SHA-256."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: list[NDArray[np.uint64]] = []

    def __contains__(self, key: int) -> bool:
        if key in self._recent:
            return True
        for keys in self._sorted:
            place = int(np.searchsorted(keys, np.uint64(key)))
            if place < len(keys) and int(keys[place]) == key:
                return True
        return False

    def add(self, key: int) -> None:
        """Add a text; takes 8 bytes per text in the long run."""
        self._recent.add(key)
        if len(self._recent) < _RECENT_KEYS:
            return
        fresh = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent = set()
        while self._sorted and len(self._sorted[-1]) <= len(fresh):
            fresh = np.union1d(self._sorted.pop(), fresh)
        self._sorted.append(fresh)


def exact_key(document: Document) -> tuple[int, bytes]:
    """Return 64 bits of the SHA-256 of a document's text, and the whole SHA-256."""
    digest = hashlib.sha256(document.text.encode()).digest()
    return int.from_bytes(digest[:8], "little"), digest
