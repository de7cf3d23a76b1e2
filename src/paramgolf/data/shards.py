"""Token shards in the common `.bin` format.

A header of 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros), then the
tokens as little-endian uint16.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramgolf.errors import UserError
from paramgolf.runtime.files import open_file, replacing, sha256_of_file

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
SPLITS = ("train", "val", "adapt")
MANIFEST = "manifest.json"  # written by `data build`


def write_shard(path: Path, tokens: NDArray[np.uint16]) -> None:
    """Write one shard, atomically."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header.tobytes())
        file.write(tokens.astype("<u2").tobytes())


def open_shard(path: Path) -> NDArray[np.uint16]:
    """Return the tokens of a shard as a read-only memory map, (N,) uint16.

    Raises:
        UserError: if the file cannot be read, or its magic number, version or size is wrong.
    """
    try:
        with open_file(path) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(HEADER_BYTES)
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror}") from error
    if len(start) < HEADER_BYTES:
        raise UserError(f"{path} is not a token shard: it has only {size} bytes")
    header = np.frombuffer(start, dtype="<i4")
    if header[0] != MAGIC:
        raise UserError(f"{path} is not a token shard (its magic number is not {MAGIC})")
    if header[1] != VERSION:
        raise UserError(f"{path} is a shard of version {header[1]}: expected {VERSION}")
    expected = HEADER_BYTES + 2 * int(header[2])
    if size != expected:
        raise UserError(
            f"{path} is truncated or damaged: {size:,} bytes, but its header says {expected:,}; "
            "fetch or build it again"
        )
    if header[2] == 0:
        raise UserError(f"{path} contains no tokens")
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES)


def check_vocabulary(path: Path, tokens: NDArray[np.uint16], vocab_size: int) -> None:
    """Check that every token is a piece of the tokenizer.

    Raises:
        UserError: naming the shard and the token.
    """
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise UserError(
            f"{path} contains token {largest}, but the tokenizer has {vocab_size} pieces: the "
            "shard was built with another tokenizer"
        )


def find_shards(folder: Path, split: str) -> list[Path]:
    """Return the shards `*_SPLIT_NUMBER.bin` of a folder, in order."""
    return sorted(folder.glob(f"*_{split}_[0-9]*.bin"))


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the shards of every split of a folder; a split may have none."""
    return {split: find_shards(folder, split) for split in SPLITS}


def read_stream(shards: Sequence[Path], limit: int | None = None) -> NDArray[np.uint16]:
    """Return the first `limit` tokens (None: all) of consecutive shards, in memory."""
    parts: list[NDArray[np.uint16]] = []
    left = limit
    for path in shards:
        tokens = np.asarray(open_shard(path)[:left])
        parts.append(tokens)
        if left is not None:
            left -= len(tokens)
            if left == 0:
                break
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)


def document_starts(stream: NDArray[np.uint16], bos: int) -> NDArray[np.int64]:
    """Return where the documents of a stream begin, (D,): at each BOS, and at 0 even without."""
    return np.union1d([0], np.flatnonzero(stream == bos))


def whole_documents(shards: Sequence[Path], bos: int) -> Iterator[NDArray[np.uint16]]:
    """Yield the tokens of consecutive shards in parts that end where a document ends.

    A part is about as large as a shard: memory holds one shard and one document.
    """
    rest = np.zeros(0, np.uint16)  # of a document that continues in the next shard
    for number, path in enumerate(shards):
        stream = np.concatenate([rest, open_shard(path)])
        is_last = number == len(shards) - 1
        end = len(stream) if is_last else int(document_starts(stream, bos)[-1])
        rest = stream[end:]
        if end:
            yield stream[:end]


def sha256_of_files(paths: Iterable[Path]) -> list[str]:
    """Return the hexadecimal SHA-256 of every file, read on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(sha256_of_file, paths))


class ShardWriter:
    """Writes a stream of tokens of any length as the shards of one split."""

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        """Write to `text_SPLIT_NUMBER.bin`, with `shard_tokens` tokens in each but the last."""
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._waiting: list[NDArray[np.uint16]] = []
        self._size = 0
        self.names: list[str] = []
        self.tokens = 0

    def add(self, tokens: NDArray[np.uint16]) -> None:
        """Append tokens to the stream."""
        self.tokens += len(tokens)
        while len(tokens):
            part = tokens[: self._shard_tokens - self._size]
            self._waiting.append(part)
            self._size += len(part)
            tokens = tokens[len(part) :]
            if self._size == self._shard_tokens:
                self._write()

    def finish(self) -> list[str]:
        """Write the last shard; return the names of all."""
        if self._size:
            self._write()
        return self.names

    def _write(self) -> None:
        self.names.append(f"text_{self._split}_{len(self.names):06d}.bin")
        write_shard(self._folder / self.names[-1], np.concatenate(self._waiting))
        self._waiting, self._size = [], 0
