"""What a folder of token shards contains, counted from the shards themselves."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np

from paramgolf.data import shards
from paramgolf.data.fingerprints import groups, runs_of
from paramgolf.data.manifest import built_by_us, require_tokenizer
from paramgolf.data.overlap import Overlap, RunIndex
from paramgolf.data.sidecars import check_sidecars, sidecar_of
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import sha256_of_file
from paramgolf.runtime.schema import require_schema

_SAMPLE_CHARS = 300


class SplitSize(NamedTuple):
    """Size of one split."""

    documents: int
    tokens: int
    bytes: int
    shards: int


class Description(NamedTuple):
    """Content of a folder."""

    splits: dict[str, SplitSize]
    tokenizer: str
    overlap: Overlap | None
    """Of the validation text with the other splits; None: there is nothing to compare."""
    sample: str
    """The beginning of the validation text, decoded."""
    manifest: str
    """Whether the manifest matches the shards."""
    sidecars: str
    """Whether the sidecars, if any, match the tokenizer."""


def describe(folder: Path, tokenizer: Path | None, reporter: Reporter) -> Description:
    """Read all shards of a folder.

    Args:
        folder: contains `*_train_*.bin`, `*_val_*.bin` and perhaps `*_adapt_*.bin`.
        tokenizer: a SentencePiece model; None: `tokenizer.model` in the folder.
        reporter: the console.

    Raises:
        UserError: if there are no shards or no tokenizer, or they do not match.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory")
    files = {split: paths for split, paths in shards.find_splits(folder).items() if paths}
    if not files:
        command = f"paramgolf data build {quote(str(folder))} --out"
        raise UserError(
            f"{folder} contains no token shards (*_train_*.bin, *_val_*.bin); build them with "
            f"`{command} {quote(f'data/{folder.resolve().name}')}`"
        )
    model = tokenizer or folder / "tokenizer.model"
    if not model.exists():
        raise UserError(
            f"{model} does not exist: name the tokenizer of the shards with --tokenizer"
        )
    pieces = Tokenizer.load(model)
    require_tokenizer(folder, pieces.sha256)
    progress = reporter.progress("read", sum(map(len, files.values())), "shards")
    splits: dict[str, SplitSize] = {}
    index = None
    if "val" in files and len(files) > 1:
        index = RunIndex(_documents(files["val"], pieces))
    sample, done = "", 0
    for split, paths in files.items():
        size = SplitSize(0, 0, 0, len(paths))
        for tokens in shards.whole_documents(paths, pieces.bos):
            shards.check_vocabulary(paths[0], tokens, pieces.vocab_size)
            decoded = pieces.decode_documents(tokens)
            if index and split != "val":
                compare(index, decoded)
            size = size._replace(
                documents=size.documents + len(decoded),
                tokens=size.tokens + len(tokens),
                bytes=size.bytes + int(pieces.token_bytes(np.append(pieces.bos, tokens)).sum()),
            )
            if split == "val" and not sample:
                sample = next(filter(None, decoded), "")[:_SAMPLE_CHARS]
            done += 1
            progress.update(done)
        splits[split] = size
    return Description(
        splits,
        _tokenizer(pieces),
        index.result() if index else None,
        sample,
        _manifest(folder, files),
        _sidecars(files, pieces),
    )


def compare(index: RunIndex, texts: Iterable[str]) -> None:
    """Look for runs of a scored text in other documents, on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for places in pool.map(lambda group: index.find(runs_of(group)[0]), groups(texts)):
            index.mark(places)


def _tokenizer(tokenizer: Tokenizer) -> str:
    described = f"{tokenizer.vocab_size:,} pieces, sha256 {tokenizer.sha256[:16]}"
    if not tokenizer.lossless:
        described += ", not lossless (it normalises text)"
    if tokenizer.case_ops:
        described += ", CaseOps"
    return described


def _documents(files: list[Path], tokenizer: Tokenizer) -> list[str]:
    documents: list[str] = []
    for tokens in shards.whole_documents(files, tokenizer.bos):
        shards.check_vocabulary(files[0], tokens, tokenizer.vocab_size)
        documents += tokenizer.decode_documents(tokens)
    return documents


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
    return f"{number}, {stated:,} bytes; every token matches the tokenizer"


def _manifest(folder: Path, files: dict[str, list[Path]]) -> str:
    path = folder / shards.MANIFEST
    if not path.exists():
        return "none"
    manifest = built_by_us(folder)
    if manifest is None:
        return "of another program"
    sidecars = {"splits": {str: {"shards": {str: str}, "sidecars?": {str: str}}}}
    require_schema(manifest, sidecars, str(path), "build the folder again, with --overwrite")
    stated = {
        name: hashed
        for split in manifest["splits"].values()
        for name, hashed in {**split["shards"], **split.get("sidecars", {})}.items()
    }
    paths = [path for paths in files.values() for path in paths]
    sidecars = [path for path in map(sidecar_of, paths) if path.exists()]
    found = {path.name: sha256_of_file(path) for path in (*paths, *sidecars)}
    wrong = sorted(name for name in {*stated, *found} if stated.get(name) != found.get(name))
    if wrong:
        return f"does not match: {', '.join(wrong)}"
    return f"matches all {len(paths)} shards and {len(sidecars)} sidecars (SHA-256)"
