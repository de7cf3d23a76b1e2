"""Sidecars: beside a token shard, the bytes of the text that each of its tokens stands for.

As in the field, `fineweb_val_bytes_000000.bin` lies beside `fineweb_val_000000.bin` and has the
header of a shard, then a uint16 a token: BOS and the operators of CaseOps 0.
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
    """The sidecars that were found beside some shards."""

    number: int
    bytes: int
    """As they say."""
    table_bytes: int
    """Of the same tokens, as the tokenizer says."""


def sidecar_of(shard: Path) -> Path:
    """Where the sidecar of a shard is, if it has one."""
    start, _, number = shard.name.rpartition("_")
    return shard.with_name(f"{start}_bytes_{number}")


def is_sidecar(path: Path) -> bool:
    """Whether the name is that of a sidecar."""
    return re.fullmatch(r".*_bytes_\d+\.bin", path.name) is not None


def write_sidecars(shards: Sequence[Path], tokenizer: Tokenizer) -> list[Path]:
    """Write the sidecars of all shards of a split; gives their paths."""
    parts: dict[Path, list[NDArray[np.uint16]]] = {}
    for shard, _, counts in _counted(shards, tokenizer):
        parts.setdefault(sidecar_of(shard), []).append(counts)
    for path, counts in parts.items():
        write_shard(path, np.concatenate(counts))
    return list(parts)


def check_sidecars(shards: Sequence[Path], tokenizer: Tokenizer) -> Sidecars:
    """Hold the sidecars that are there against the tokenizer.

    One that normalises text does not know the bytes of the original: then the sums may differ.

    Args:
        shards: all of a split, in order; their tokens are pieces of the tokenizer.
        tokenizer: theirs.

    Raises:
        UserError: naming file, position and both counts where a lossless tokenizer counts
            otherwise; or for a file that is no sidecar of its shard.
    """
    stated = {
        shard: open_shard(sidecar_of(shard)) for shard in shards if sidecar_of(shard).exists()
    }
    sums = Sidecars(len(stated), 0, 0)
    for shard, begin, counts in _counted(shards, tokenizer) if stated else ():
        if shard not in stated:
            continue
        path, size = sidecar_of(shard), len(open_shard(shard))
        if len(stated[shard]) != size:
            raise UserError(
                f"{path} has the bytes of {len(stated[shard]):,} tokens, but {shard} holds "
                f"{size:,}: remove it, or fetch or build both again"
            )
        own = stated[shard][begin : begin + len(counts)]
        different = np.flatnonzero(own != counts)
        if len(different) and tokenizer.lossless:
            place = int(different[0])
            raise UserError(
                f"{path} says that token {begin + place:,} has {own[place]} bytes; by the "
                f"tokenizer it has {counts[place]}: remove it, or fetch or build both again"
            )
        sums = sums._replace(
            bytes=sums.bytes + int(own.sum(dtype=np.int64)),
            table_bytes=sums.table_bytes + int(counts.sum(dtype=np.int64)),
        )
    return sums


def _counted(
    shards: Sequence[Path], tokenizer: Tokenizer
) -> Iterator[tuple[Path, int, NDArray[np.uint16]]]:
    """Bytes of all tokens in blocks: of which shard, from which token on, (n,) counts."""
    before = np.array([tokenizer.bos], np.uint16)  # what the first counts depend on
    for shard in shards:
        tokens = open_shard(shard)
        for begin in range(0, len(tokens), _BLOCK_TOKENS):
            block = np.concatenate([before, tokens[begin : begin + _BLOCK_TOKENS]])
            counts = tokenizer.token_bytes(block)[len(before) - 1 :]
            yield shard, begin, counts.astype(np.uint16)
            before = block[np.flatnonzero(block != tokenizer.escape)[-1] :]
