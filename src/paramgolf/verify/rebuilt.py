"""The provenance of a run, built again from its text and compared with the stored file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from paramgolf.data.documents import digest_record
from paramgolf.data.fingerprints import Hashes, Sampling, fingerprints, salt_of
from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import TOKENIZER_GIVEN, Gathering, Provenance, Text, are_among
from paramgolf.data.shards import SPLITS, find_splits
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.files import sha256_of_file
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify.checks import Check, check

PROVENANCE = "provenance rebuilt"
"""Name of the check."""
_MIN_COMMON = 0.9
"""Of the runs of a text whose originals are not kept, where the tokenizer changes them: a rule of
SentencePiece changes few letters that a run is made of."""
_PROBE = "a\u2581b \U000e0fff"
"""Characters that a tokenizer may lose although it does not normalise."""


class Rebuilding:
    """Gathers the fingerprints of all texts of a run while another check reads them."""

    def __init__(self, run: RunDir, text: PreparedText, tokenizer: Tokenizer) -> None:
        """Prepare for the texts of `run`, whose shards must all exist.

        Raises:
            UserError: if the stored provenance is damaged.
        """
        self._run, self._text, self._tokenizer = run, text, tokenizer
        self._stored = Provenance.load(run.provenance)
        self._shards = {
            name: [sha256_of_file(path) for path in text.shards(name, run.data)]
            for name in text.splits
        }
        salt = self._stored.sampling.salt
        self._sampling = next((s for s in self._samplings() if s.salt == salt), None)
        self._gathered: dict[str, Gathering] = {}
        self._digests: dict[str, hashlib._Hash] = {}
        self._sample = Sampling(salt)

    def _samplings(self) -> Iterator[Sampling]:
        """Yield what the sample can follow from.

        The run's own shards; or, where it was given shards, those, or what `data build` recorded
        beside them.
        """
        yield Sampling(_salt(self._shards))
        folder = Path(self._text.source)
        if folder.is_dir():
            files = {name: paths for name, paths in find_splits(folder).items() if paths}
            yield Sampling(_salt({k: [sha256_of_file(p) for p in v] for k, v in files.items()}))
            built = folder / "provenance.safetensors"
            if built.exists():
                yield Provenance.load(built).sampling

    def add(self, split: str, documents: Sequence[str]) -> None:
        """Add documents of a split, in their order."""
        gathering = self._gathered.setdefault(split, Gathering(self._sample.salt))
        gathering.add(fingerprints(documents, self._sample))
        digest = self._digests.setdefault(split, hashlib.sha256())
        for text in documents:
            digest.update(digest_record(text))

    def check(self, adapted_on: Sequence[str], claim: str) -> Check:
        """Compare what was gathered with the stored file, byte for byte.

        Args:
            adapted_on: the splits that the weights were adapted on.
            claim: where the tokenizer comes from; see `data.claims`.
        """
        if self._sampling is None:
            figure = "its sample does not follow from the text: another salt"
            return check(PROVENANCE, "provenance", False, figure)
        val = self._text.found_text(self._run.data, self._tokenizer)
        self.add("val", val.texts)
        texts: dict[str, Text] = {}
        for name, gathering in self._gathered.items():
            text = gathering.text(self._digests[name].hexdigest(), self._shards[name])
            texts[name] = text.thinned(max(self._sampling.bits, text.sampling.bits))
        uses = {
            "training": "train",
            "calibration": "train",
            "tokenizer": "train" if claim == "trained" else TOKENIZER_GIVEN,
            "adaptation": ", ".join(adapted_on) or "none",
        }
        expected = replace(Provenance(texts).fitted().of("train", *adapted_on), uses=uses)
        if expected.content() == self._run.provenance.read_bytes():
            runs = sum(len(text.runs) for text in expected.texts.values())
            figure = f"{runs:,} fingerprints of {len(expected.texts)} texts, byte for byte"
            return check(PROVENANCE, "provenance", True, figure)
        return self._compared(expected)

    def _compared(self, expected: Provenance) -> Check:
        """Compare by text, where the originals are not kept that a tokenizer changed."""
        stored, wrong, changed = self._stored, [], []
        if (stored.uses, stored.texts.keys()) != (expected.uses, expected.texts.keys()):
            wrong.append("other texts or uses")
        for name in stored.texts.keys() & expected.texts.keys():
            ours, theirs = expected.texts[name], stored.texts[name]
            if self._changes(name):
                changed.append(name)
                ours = ours.thinned(max(ours.sampling.bits, theirs.sampling.bits))
                if (ours.documents, ours.shards) != (theirs.documents, theirs.shards) or (
                    _common(ours.runs, theirs.runs) < _MIN_COMMON
                ):
                    wrong.append(f"fingerprints of {name}")
            elif not _equal(ours, theirs):
                wrong.append(f"fingerprints of {name}")
        good = not wrong and bool(changed)
        figure = f"different: {', '.join(wrong) or 'the sample'}"
        if good:
            figure = (
                f"the originals of {', '.join(changed)} are not kept, which the tokenizer changes: "
                f"at least {_MIN_COMMON:.0%} of the fingerprints are those of the decoded text"
            )
        return check(PROVENANCE, "provenance", good, figure)

    def _changes(self, name: str) -> bool:
        """Return whether the originals of a split are known, and not restored by the tokenizer."""
        split, tokenizer = self._text.splits[name], self._tokenizer
        if name == "val" or split.bytes_are != "original":
            return False
        restores = tokenizer.decode_documents(tokenizer.encode([_PROBE])[0]) == [_PROBE]
        return not (restores and tokenizer.lossless)


def _salt(hashes: dict[str, list[str]]) -> int:
    return salt_of(*(digest for name in SPLITS for digest in hashes.get(name, ())))


def _equal(one: Text, other: Text) -> bool:
    same = (one.documents, one.sha256, one.shards, one.sampling)
    return same == (other.documents, other.sha256, other.shards, other.sampling) and (
        one.runs.tolist() == other.runs.tolist()
    )


def _common(one: Hashes, other: Hashes) -> float:
    """Return the share of all of the hashes that are in both sets."""
    both = int(are_among(one, other).sum())
    return both / max(1, len(one) + len(other) - both)
