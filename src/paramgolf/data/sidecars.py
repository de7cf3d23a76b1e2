"""Sidecars: files beside token shards with the number of text bytes that each token represents.

As in the challenge, `fineweb_val_bytes_000000.bin` belongs to `fineweb_val_000000.bin`. It has the
header of a shard, then one uint16 per token: 0 for BOS and the operators of CaseOps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.shards import open_shard, write_shard
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError

_BLOCK_TOKENS = 1 << 20


class Sidecars(NamedTuple):
    """The sidecars of some shards."""

    number: int
    bytes: int
    """Sum of their counts."""
    table_bytes: int
    """Bytes of the same tokens by the tokenizer."""


def sidecar_of(shard: Path) -> Path:
    """Return the path of a shard's sidecar, which need not exist."""
    start, _, number = shard.name.rpartition("_")
    return shard.with_name(f"{start}_bytes_{number}")


def is_sidecar(path: Path) -> bool:
    """Return whether a path is named like a sidecar."""
    return re.fullmatch(r".*_bytes_\d+\.bin", path.name) is not None


def check_sidecars(shards: Sequence[Path], tokenizer: Tokenizer) -> Sidecars:
    """Compare the sidecars that exist with the tokenizer.

    A tokenizer that normalises text cannot know the bytes of the original: the sums may differ.

    Args:
        shards: all shards of a split, in order; their tokens must be pieces of the tokenizer.
        tokenizer: the tokenizer of the shards.

    Raises:
        UserError: naming file, position and both counts, if the tokenizer is lossless and counts
            differently; or if a file is not a sidecar of its shard.
    """
    stated = {
        shard: open_shard(sidecar_of(shard)) for shard in shards if sidecar_of(shard).exists()
    }
    sums = Sidecars(len(stated), 0, 0)
    for shard, begin, counts in count_bytes(shards, tokenizer) if stated else ():
        if shard not in stated:
            continue
        path, size = sidecar_of(shard), len(open_shard(shard))
        if len(stated[shard]) != size:
            raise UserError(
                f"{path} has byte counts of {len(stated[shard]):,} tokens, but {shard} contains "
                f"{size:,}: remove it, or fetch or build both again"
            )
        own = stated[shard][begin : begin + len(counts)]
        different = np.flatnonzero(own != counts)
        if len(different) and tokenizer.lossless:
            place = int(different[0])
            raise UserError(
                f"{path} states {own[place]} bytes for token {begin + place:,}, but the tokenizer "
                f"counts {counts[place]}: remove it, or fetch or build both again"
            )
        sums = sums._replace(
            bytes=sums.bytes + int(own.sum(dtype=np.int64)),
            table_bytes=sums.table_bytes + int(counts.sum(dtype=np.int64)),
        )
    return sums


def count_bytes(
    shards: Sequence[Path], tokenizer: Tokenizer
) -> Iterator[tuple[Path, int, NDArray[np.uint16]]]:
    """Yield the byte counts of all tokens in blocks: shard, index of the first, (n,) counts."""
    before = np.array([tokenizer.bos], np.uint16)  # the tokens that the next counts depend on
    for shard in shards:
        tokens = open_shard(shard)
        for begin in range(0, len(tokens), _BLOCK_TOKENS):
            block = np.concatenate([before, tokens[begin : begin + _BLOCK_TOKENS]])
            counts = tokenizer.token_bytes(block)[len(before) - 1 :]
            yield shard, begin, counts.astype(np.uint16)
            before = block[np.flatnonzero(block != tokenizer.escape)[-1] :]


def write_sidecars(shards: Sequence[Path], tokenizer: Tokenizer) -> list[Path]:
    """Write the sidecars of all shards of a split; return their paths."""
    parts: dict[Path, list[NDArray[np.uint16]]] = {}
    for shard, _, counts in count_bytes(shards, tokenizer):
        parts.setdefault(sidecar_of(shard), []).append(counts)
    for path, counts in parts.items():
        write_shard(path, np.concatenate(counts))
    return list(parts)
