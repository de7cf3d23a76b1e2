"""Token streams of files to score: plain text, JSON Lines, token shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.data import shards
from paramgolf.data.documents import is_jsonl, read_jsonl, read_text
from paramgolf.data.sidecars import check_sidecars, is_sidecar
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError


class Stream(NamedTuple):
    """Documents that are scored together."""

    name: str
    tokens: NDArray[np.uint16]
    """(N + 1,); each document begins with BOS."""
    texts: list[str]
    """Texts of the documents."""


def read_streams(files: Sequence[Path], tokenizer: Tokenizer) -> Iterator[Stream]:
    """Yield one stream of all shards (.bin) together, and one per text or JSON Lines file.

    Sidecars, which a glob may match together with their shards, are not read as text.

    Raises:
        UserError: if a file is missing, damaged or without text, or a sidecar is wrong.
    """
    bins = [path for path in files if path.suffix == ".bin"]
    if bins:
        texts = [path for path in bins if not is_sidecar(path)]
        if not texts:
            raise UserError(f"{bins[0]} contains byte counts, not tokens: name its shard")
        for path in texts:
            shards.check_vocabulary(path, shards.open_shard(path), tokenizer.vocab_size)
        check_sidecars(texts, tokenizer)
        tokens = shards.read_stream(texts)
        decoded = tokenizer.decode_documents(tokens)
        yield _with_text(Stream(", ".join(map(str, texts)), tokens, decoded), tokenizer)
    for path in files:
        if path in bins:
            continue
        documents = read_jsonl(path) if is_jsonl(path) else None
        texts = [read_text(path)] if documents is None else [text for _, text in documents]
        yield encoded(str(path), texts, tokenizer)


def encoded(name: str, texts: list[str], tokenizer: Tokenizer) -> Stream:
    """Return documents as a stream.

    Raises:
        UserError: if they are empty, or the tokenizer keeps nothing of them.
    """
    if not any(texts):
        raise UserError(f"{name} is empty")
    return _with_text(Stream(name, np.concatenate(tokenizer.encode(texts)), texts), tokenizer)


def _with_text(stream: Stream, tokenizer: Tokenizer) -> Stream:
    """Return a stream that has a text to score; a score per byte of none is not a number."""
    if not tokenizer.token_bytes(stream.tokens).any():
        raise UserError(f"{stream.name} contains no text that the tokenizer keeps")
    return stream
