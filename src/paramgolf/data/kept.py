"""What was read of a folder of shards, kept beside them, so that later runs need not read them.

The name of the files is a hash of all that they follow from: the shards, by their hashes, the
scored text, the tokenizer and the version. A shard that changes thus asks for other files. Nothing
vouches for them: the audit reads the shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from paramgolf.data.overlap import Overlap
from paramgolf.data.prepared import PreparedText
from paramgolf.data.processes import AllCores
from paramgolf.data.provenance import TOKENIZER_GIVEN, VERSION, Provenance
from paramgolf.data.shards import sha256_of_files
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.files import read_json, sha256_of_file, write_json
from paramgolf.version import __version__

WORTH_TOKENS = 1 << 24
"""A text of fewer tokens is read in seconds."""


class Kept(NamedTuple):
    """What the preparation takes from `RunTexts`, from files."""

    text: PreparedText
    overlaps: dict[str, Overlap]
    stored: Provenance

    def provenance(self, claim: str) -> Provenance:
        """See `RunTexts.provenance`."""
        trained_on = "train" if claim == "trained" else TOKENIZER_GIVEN
        return replace(self.stored, uses={**self.stored.uses, "tokenizer": trained_on})


def read_texts(
    text: PreparedText,
    folder: Path,
    tokenizer: Tokenizer,
    hashes: Mapping[Path, str],
    progress: Callable[[int, int], None],
) -> AllCores | Kept:
    """Return what `RunTexts` does: from files if it is known, else from the texts.

    A folder that cannot be written stays as it is.
    """
    train = text.shards("train", folder)
    if text.splits["train"].tokens < WORTH_TOKENS or any(path not in hashes for path in train):
        return AllCores(text, folder, tokenizer, hashes, progress)
    paths = [path for split in text.splits for path in text.shards(split, folder)]
    new = [path for path in paths if path not in hashes]
    hashes = {**hashes, **dict(zip(new, sha256_of_files(new), strict=True))}
    file = _file(train[0].parent, text, tokenizer, [hashes[path] for path in paths])
    with suppress(UserError, KeyError, TypeError, ValueError, AttributeError):
        return _load(file, text)
    found = AllCores(text, folder, tokenizer, hashes, progress)
    with suppress(UserError):
        _save(file, found)
    return found


def _file(folder: Path, text: PreparedText, tokenizer: Tokenizer, hashes: list[str]) -> Path:
    own = {name: asdict(replace(split, shards=[])) for name, split in text.splits.items()}
    key = json.dumps([__version__, VERSION, tokenizer.sha256, own, hashes], sort_keys=True)
    return folder / f".prepared-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _load(file: Path, text: PreparedText) -> Kept:
    stored, values = file.with_suffix(".safetensors"), read_json(file)
    if sha256_of_file(stored) != values["provenance_sha256"]:
        raise ValueError
    known = replace(text.splits["train"], **values["train"])
    kinds = {int: (known.documents, known.bytes), str: (known.text_sha256, known.bytes_are)}
    overlaps = {name: Overlap(**own) for name, own in values["overlap"].items()}
    numbers = [n for overlap in overlaps.values() for n in overlap]
    kinds[int] += (known.tokens, *numbers)
    if any(type(value) is not kind for kind, own in kinds.items() for value in own):
        raise TypeError
    if "train" not in overlaps:
        raise ValueError
    filled = replace(text, splits={**text.splits, "train": known})
    return Kept(filled, overlaps, Provenance.load(stored))


def _save(file: Path, found: AllCores) -> None:
    stored, train = file.with_suffix(".safetensors"), found.text.splits["train"]
    found.provenance("").save(stored)
    values = {
        "train": {key: getattr(train, key) for key in ("documents", "text_sha256", "bytes")},
        "overlap": {name: overlap._asdict() for name, overlap in found.overlaps.items()},
        "provenance_sha256": sha256_of_file(stored),
    }
    write_json(file, values)
