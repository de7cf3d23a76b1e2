"""The key/value cache, for feeding a sequence in chunks (`model.gpt.GPT.forward`).

Shape suffixes as in `model.attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paramgolf.config import ModelConfig
from paramgolf.model.order import LayerOrder


class Past:
    """The key/value cache: keys and values of all positions so far, for every visit to a block.

    Its memory is allocated once and used again for the next sequence, so that a CUDA graph can
    read and write it. A graph always writes to the same place. When one token is fed whose
    position is known only on the device, its keys and values therefore go to the last slot, which
    no earlier token needs, and `keep_last` moves them to their own.

    Attributes:
        length: positions so far.
        position: where the one token that is fed stands, (1,) int64 on the device; None: the
            tokens that are fed follow position `length`.
    """

    def __init__(
        self, config: ModelConfig, order: LayerOrder, rows: int, embedding: Tensor
    ) -> None:
        """Create an empty cache for `rows` sequences of up to seq_len positions.

        Its dtype and device are those of the model's embedding.
        """
        self.length = 0
        self.position: Tensor | None = None
        visits = len(order.encoder) + len(order.decoder)
        shape = visits, 2, rows, config.seq_len, config.num_kv_heads, config.head_dim
        # Zeros, since what a mask hides must still be finite.
        self._store = embedding.new_zeros(shape)
        self._visit = 0

    def places(self, positions: int) -> slice | Tensor:
        """Return what selects the rows of `positions` tokens to be fed from a table."""
        if self.position is not None:
            return self.position
        return slice(self.length, self.length + positions)

    def extended(self, k_BTKd: Tensor, v_BTKd: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add the keys and values of the next visit.

        Returns all keys and values, (B, S, K, d), and which of them the queries see: (1, S), or
        None if query i of T sees the first S - T + i + 1.
        """
        kept = self._store[self._visit]
        self._visit += 1
        if self.position is None:
            seen, end = None, self.length + k_BTKd.size(1)
            here = slice(self.length, end)
        else:
            end = kept.size(2)
            here = slice(end - 1, end)
            slots = torch.arange(end, device=kept.device)
            seen = ((slots < self.position) | (slots == end - 1))[None]
        kept[0, :, here], kept[1, :, here] = k_BTKd, v_BTKd
        return kept[0, :, :end], kept[1, :, :end], seen

    def advance(self, positions: int) -> None:
        """Count positions that all visits have added."""
        self._visit = 0
        if self.position is None:
            self.length += positions

    def keep_last(self) -> None:
        """Keep what was added to the last slot at position `length`."""
        self._store[:, :, :, self.length] = self._store[:, :, :, -1]
        self.length += 1
