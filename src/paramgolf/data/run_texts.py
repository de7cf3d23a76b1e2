"""The texts of a run, read once: compared with the scored text, hashed and counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.documents import digest_record
from paramgolf.data.fingerprints import Hashes, Sampling, groups, runs_of, salt_of
from paramgolf.data.overlap import Overlap, RunIndex
from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import TOKENIZER_GIVEN, Gathering, Provenance, Text
from paramgolf.data.shards import SPLITS, document_starts, sha256_of_files, whole_documents
from paramgolf.data.tokenizer import Tokenizer

PART_TOKENS = 1 << 21
"""Read at once by one process."""


class Part(NamedTuple):
    """What was read of some documents in a row."""

    tokens: int
    documents: int
    records: bytes
    """What `text_digest` hashes."""
    runs: Hashes
    """The sampled ones."""
    seen: NDArray[np.int64]
    """Which runs of the scored text they contain."""


class RunTexts:
    """What follows from the texts of a run, as they come back from its tokens.

    So the audit, which has the tokens, gets the same from them under any tokenizer.

    Attributes:
        text: the prepared text; hash and sizes of its training text are filled in if unknown.
        overlaps: of the scored text, with "train", and with "train+adapt" if there is such a split.
    """

    def __init__(
        self,
        text: PreparedText,
        folder: Path,
        tokenizer: Tokenizer,
        hashes: Mapping[Path, str],
        progress: Callable[[int, int], None],
    ) -> None:
        """Read all shards, which must exist.

        Memory holds one shard, the runs of the scored text (at most 62 bytes for each of its bytes)
        and, per process, about 0.3 GB.

        Args:
            text: the prepared text.
            folder: the run's data folder.
            tokenizer: of the shards.
            hashes: SHA-256 of shards, where they are known.
            progress: called with the number of tokens read and the total.
        """
        self.text, self._lossless = text, tokenizer.lossless
        paths = {name: text.shards(name, folder) for name in SPLITS if name in text.splits}
        new = [path for own in paths.values() for path in own if path not in hashes]
        known = {**hashes, **dict(zip(new, sha256_of_files(new), strict=True))}
        self._shards = {name: tuple(known[path] for path in own) for name, own in paths.items()}
        # It follows from all shards of the run, so that nobody can choose it.
        salt = salt_of(*(digest for own in self._shards.values() for digest in own))
        self._gathered = {name: Gathering(salt) for name in paths}
        self._digests = {name: hashlib.sha256() for name in paths}
        self.overlaps: dict[str, Overlap] = {}
        total, done = sum(split.tokens for split in text.splits.values()), 0
        index = RunIndex(text.scored_text(folder, tokenizer).texts)
        global _reading
        compared = [name for name in ("train", "adapt") if name in paths]
        for number, name in enumerate([*compared, "val"], start=1):
            _reading = tokenizer, index if name in compared else RunIndex([])
            size, gathering, digest = 0, self._gathered[name], self._digests[name]
            tasks = ((tokens, gathering.sampling) for tokens in _parts(paths[name], tokenizer.bos))
            for part in self.read_all(tasks, text.splits[name].tokens):
                index.mark(part.seen)
                gathering.add(part.documents, part.runs)
                digest.update(part.records)
                size += len(part.records) - 8 * part.documents
                done += part.tokens
                progress(done, total)
            if name in compared:
                self.overlaps["+".join(compared[:number])] = index.result()
            split = text.splits[name]
            if not split.text_sha256:
                count = gathering.text().documents
                split = replace(split, documents=count, text_sha256=digest.hexdigest(), bytes=size)
                self.text = replace(text, splits={**text.splits, name: split})

    def read_all(
        self, tasks: Iterator[tuple[NDArray[np.uint16], Sampling]], tokens: int
    ) -> Iterator[Part]:
        """Yield `read_part` of all parts of a text of so many tokens, in their order."""
        return map(read_part, tasks)

    def provenance(self, claim: str) -> Provenance:
        """Return the provenance, with one sampling, before any adaptation.

        Under a tokenizer that changes text, the hash of a text is that of the originals, as the
        prepared text states it.

        Args:
            claim: where the tokenizer comes from; see `data.claims`.
        """
        texts: dict[str, Text] = {}
        for name, gathering in self._gathered.items():
            own, stated = self._digests[name].hexdigest(), self.text.splits[name].text_sha256
            texts[name] = gathering.text(own if self._lossless else stated, self._shards[name])
        trained_on = "train" if claim == "trained" else TOKENIZER_GIVEN
        uses = {"training": "train", "calibration": "train", "tokenizer": trained_on}
        return Provenance(texts, uses).fitted()


def _parts(paths: list[Path], bos: int) -> Iterator[NDArray[np.uint16]]:
    """Yield the tokens of shards in parts that are whole documents."""
    for tokens in whole_documents(paths, bos):
        starts = document_starts(tokens, bos)
        near = np.searchsorted(starts, range(PART_TOKENS, len(tokens), PART_TOKENS), "right")
        yield from filter(len, np.split(tokens, np.unique(starts[near - 1])))


_reading: tuple[Tokenizer, RunIndex]
"""What `read_part` uses: gigabytes, which processes that are forked from this one share."""


def read_part(task: tuple[NDArray[np.uint16], Sampling]) -> Part:
    """Read the documents of some tokens, keeping a sample of their runs."""
    (tokens, sampling), (tokenizer, index) = task, _reading
    texts = tokenizer.decode_documents(tokens)
    runs = [runs_of(group)[0] for group in groups(texts)]
    return Part(
        len(tokens),
        len(texts),
        b"".join(map(digest_record, texts)),
        np.concatenate([own[sampling.includes(own)] for own in runs]),
        np.concatenate([index.find(own) for own in runs]),
    )
