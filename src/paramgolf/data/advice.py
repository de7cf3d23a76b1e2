"""What to say about a new folder of shards: its weak points, and the commands to try next."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from paramgolf.data.shards import find_splits, open_shard
from paramgolf.recipes import RECIPES

_MANY_TOKENS = 200_000
"""On two cores, `tiny` scores about this many in minutes, or adapts on them."""
_TINY_VOCAB, _MAX_TINY_VOCAB, _TINY_BUDGET = 2048, 4096, 650_000
"""Pieces of `tiny`, pieces from which its budget is too small, and its budget."""
_BYTES_PER_PIECE = 64
"""Of the embedding of `tiny`: 128 weights of 4 bits."""
_GPU_TOKENS = 10_000_000
"""Training text that is worth a model of the size of `h200`."""


def next_commands(folder: Path, vocab_size: int) -> dict[str, str]:
    """Return commands that train on a folder of shards, by when to use them."""
    tokens = {
        split: sum(len(open_shard(path)) for path in paths)
        for split, paths in find_splits(folder).items()
    }
    source = f"--data.source {quote(str(folder))} --model.vocab-size {vocab_size}"
    tiny = f"paramgolf run tiny {source}"
    if vocab_size > _MAX_TINY_VOCAB:
        budget = _TINY_BUDGET + (vocab_size - _TINY_VOCAB) * _BYTES_PER_PIECE
        tiny += f" --pack.budget-bytes {-(-budget // 10_000) * 10_000}"
    if tokens["val"] > _MANY_TOKENS:
        tiny += f" --data.val-targets {_MANY_TOKENS}"
    if not 0 < tokens["adapt"] <= _MANY_TOKENS:
        tiny += " --adapt.text none"
    commands = {"next": tiny}
    if tokens["train"] >= _GPU_TOKENS:
        commands["on a GPU"] = f"paramgolf run h200 {source}"
    if folder == Path(RECIPES["record"][1].data.source):
        torchrun = "torchrun --standalone --local-addr=127.0.0.1 --nproc-per-node=8"
        commands["on 8 GPUs"] = f"{torchrun} -m paramgolf run record"
    return commands
