"""Which window scores which target.

Targets are numbered 0 .. N - 1; target t is token t + 1 of the stream. A window of length L that
starts at s reads tokens s .. s + L - 1 and predicts targets s .. s + L - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Windows(NamedTuple):
    """Windows that each score their last `scored` targets, as far as these exist (are < N)."""

    starts: NDArray[np.int64]
    scored: int


def plain_windows(num_targets: int, seq_len: int) -> list[Windows]:
    """Consecutive windows that score all they predict."""
    return [Windows(np.arange(0, num_targets, seq_len), seq_len)]


def sliding_windows(num_targets: int, seq_len: int, stride: int) -> list[Windows]:
    """A window every `stride` tokens; the first scores all, later ones their last `stride`.

    Windows start at s = 0, stride, ... while s + seq_len - stride < num_targets, so every later
    target has between seq_len - stride + 1 and seq_len tokens of context.
    """
    starts = np.arange(0, max(1, num_targets - (seq_len - stride)), stride)
    return [Windows(starts[:1], seq_len), Windows(starts[1:], stride)]


def in_chunks(
    windows: Sequence[Windows], num_targets: int, seq_len: int, chunk_targets: int
) -> list[list[Windows]]:
    """The windows of every chunk of `chunk_targets` targets, in order.

    A window belongs where the first target lies that it scores, so that a chunk's targets are
    scored once its windows and those of earlier chunks are.
    """
    chunks: list[list[Windows]] = [[] for _ in range(max(1, -(-num_targets // chunk_targets)))]
    for starts, scored in windows:
        numbers = (starts + seq_len - scored) // chunk_targets
        for number in np.unique(numbers):
            chunks[number].append(Windows(starts[numbers == number], scored))
    return chunks
