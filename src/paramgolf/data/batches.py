"""Training sequences, sampled without replacement, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.data.shards import open_shard
from paramgolf.errors import UserError
from paramgolf.runtime.device import named_seed


class SequenceSampler:
    """An endless list of sequences of seq_len + 1 tokens, as a pure function of the seed.

    In every epoch, each shard is cut into sequences at a new random offset, and all sequences are
    shuffled. Sequence i is the same for every caller: rank r of W takes its share of each batch by
    index, and a resumed run continues at its index. (The reference gives each rank every W-th
    shard, which memory-mapped shards make unnecessary.)
    """

    def __init__(self, shards: Sequence[Path], seq_len: int, seed: int, name: str) -> None:
        """Open the shards; `name` makes the orders of different purposes independent.

        Raises:
            UserError: if no shard contains a whole sequence.
        """
        self._tokens = [open_shard(path) for path in shards]
        self._seq_len, self._seed, self._name = seq_len, seed, name
        # If several fit, one sequence less leaves room for the random offset.
        fitting = [(len(tokens) - 1) // seq_len for tokens in self._tokens]
        self._counts = np.array([max(count - 1, min(count, 1)) for count in fitting])
        self.sequences_per_epoch = int(self._counts.sum())
        if self.sequences_per_epoch == 0:
            raise UserError(
                f"the training text is shorter than one sequence of {seq_len} tokens; give more "
                "text or a smaller --model.seq-len"
            )
        self._epoch = -1
        self._order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._phases: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def sequences(self, first: int, count: int) -> Tensor:
        """Return sequences first .. first + count - 1, (count, seq_len + 1) int32."""
        rows = [self._sequence(number) for number in range(first, first + count)]
        return torch.from_numpy(np.stack(rows).astype(np.int32))

    def _sequence(self, number: int) -> NDArray[np.uint16]:
        epoch, position = divmod(number, self.sequences_per_epoch)
        if epoch != self._epoch:
            self._shuffle(epoch)
        index = int(self._order[position])
        ends = np.cumsum(self._counts)
        shard = int(np.searchsorted(ends, index, side="right"))
        within = index - int(ends[shard] - self._counts[shard])
        start = int(self._phases[shard]) + within * self._seq_len
        return self._tokens[shard][start : start + self._seq_len + 1]

    def _shuffle(self, epoch: int) -> None:
        generator = np.random.default_rng(named_seed(self._seed, f"{self._name}:{epoch}"))
        spare = [
            len(tokens) - 1 - count * self._seq_len
            for tokens, count in zip(self._tokens, self._counts, strict=True)
        ]
        highest = [min(room, self._seq_len - 1) for room in spare]
        self._phases = generator.integers(0, highest, endpoint=True)
        self._order = generator.permutation(self.sequences_per_epoch)
        self._epoch = epoch
