"""What is in a folder of token shards: recounted from the shards themselves."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from paramgolf.data import shards
from paramgolf.data.fingerprints import fingerprints
from paramgolf.data.provenance import Gathering, Provenance, Text
from paramgolf.data.sidecars import check_sidecars, sidecar_of
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import read_json, sha256_of_file

_SAMPLE_CHARS = 300


class SplitSize(NamedTuple):
    """What one split holds."""

    documents: int
    tokens: int
    bytes: int
    shards: int


class Description(NamedTuple):
    """What a folder holds."""

    splits: dict[str, SplitSize]
    tokenizer: str
    overlap_share: float | None
    """Of the validation text's sampled shingles with those of the other splits."""
    seen_documents: int
    """Of the validation text: in the other splits word for word, or half of their shingles."""
    sample: str
    """The beginning of the validation text, decoded."""
    manifest: str
    """Whether the manifest tells the truth."""
    sidecars: str
    """Whether the sidecars, if there are some, do."""


def describe(folder: Path, tokenizer: Path | None, reporter: Reporter) -> Description:
    """Read all shards of a folder.

    Args:
        folder: it holds `*_train_*.bin`, `*_val_*.bin`, perhaps `*_adapt_*.bin`.
        tokenizer: by default `tokenizer.model` in the folder.
        reporter: the console.

    Raises:
        UserError: if there are no shards or no tokenizer, or they do not belong together.
    """
    pieces = Tokenizer.load(tokenizer or folder / "tokenizer.model")
    files = shards.find_splits(folder)
    if not any(files.values()):
        raise UserError(f"{folder} holds no token shards (*_train_*.bin, *_val_*.bin)")
    progress = reporter.progress("read", sum(map(len, files.values())), "shards")
    splits: dict[str, SplitSize] = {}
    texts: dict[str, Text] = {}
    sample, done = "", 0
    for split, paths in files.items():
        if not paths:
            continue
        gathering, size = Gathering(), SplitSize(0, 0, 0, len(paths))
        for documents in shards.whole_documents(paths, pieces.bos):
            shards.check_vocabulary(paths[0], documents, pieces.vocab_size)
            decoded = pieces.decode_documents(documents)
            gathering.add(fingerprints(decoded))
            size = size._replace(
                documents=size.documents + int((documents == pieces.bos).sum()),
                tokens=size.tokens + len(documents),
                bytes=size.bytes + int(pieces.token_bytes(np.append(pieces.bos, documents)).sum()),
            )
            if split == "val" and not sample:
                sample = next(filter(None, decoded), "")[:_SAMPLE_CHARS]
            done += 1
            progress.update(done)
        splits[split], texts[split] = size, gathering.text()
    share, seen = None, 0
    if "val" in texts and len(texts) > 1:
        known = Provenance({name: text for name, text in texts.items() if name != "val"})
        share = known.share(texts["val"].shingles)
        for documents in shards.whole_documents(files["val"], pieces.bos):
            seen += len(known.seen(pieces.decode_documents(documents)))
    kind = f"{pieces.vocab_size:,} pieces, sha256 {pieces.sha256[:16]}"
    if not pieces.lossless:
        kind += ", not lossless (it normalises text)"
    if pieces.case_ops:
        kind += ", CaseOps"
    return Description(
        splits, kind, share, seen, sample, _manifest(folder, files), _sidecars(files, pieces)
    )


def _sidecars(files: dict[str, list[Path]], tokenizer: Tokenizer) -> str:
    try:
        found = [check_sidecars(paths, tokenizer) for paths in files.values()]
    except UserError as error:
        return f"WRONG: {error}"
    if not (number := sum(each.number for each in found)):
        return "none"
    stated, table = sum(each.bytes for each in found), sum(each.table_bytes for each in found)
    if stated != table:
        return f"{number}, {stated:,} bytes of the original text; by the tokenizer {table:,}"
    return f"{number}, {stated:,} bytes, each token as the tokenizer counts it"


def _manifest(folder: Path, files: dict[str, list[Path]]) -> str:
    if not (folder / shards.MANIFEST).exists():
        return "none"
    stated = {
        name: hashed
        for split in read_json(folder / shards.MANIFEST)["splits"].values()
        for name, hashed in {**split["shards"], **split.get("sidecars", {})}.items()
    }
    every = [path for paths in files.values() for path in paths]
    every += filter(Path.exists, map(sidecar_of, list(every)))
    found = {path.name: sha256_of_file(path) for path in every}
    wrong = sorted(name for name in {*stated, *found} if stated.get(name) != found.get(name))
    if wrong:
        return f"does not match: {', '.join(wrong)}"
    beside = len(every) - sum(map(len, files.values()))
    return f"matches all {len(every) - beside} shards and {beside} sidecars (SHA-256)"
