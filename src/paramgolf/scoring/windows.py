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


def windows_of(num_targets: int, seq_len: int, stride: int) -> list[Windows]:
    """Return sliding windows with this stride; 0: consecutive windows."""
    if stride:
        return sliding_windows(num_targets, seq_len, stride)
    return plain_windows(num_targets, seq_len)


def plain_windows(num_targets: int, seq_len: int) -> list[Windows]:
    """Return consecutive windows that score every target they predict."""
    return [Windows(np.arange(0, num_targets, seq_len), seq_len)]


def sliding_windows(num_targets: int, seq_len: int, stride: int) -> list[Windows]:
    """Return a window every `stride` tokens that scores its last `stride` targets.

    The first window scores all of its targets. Windows start at s = 0, stride, ... while
    s + seq_len - stride < num_targets, so every later target has between seq_len - stride + 1 and
    seq_len tokens of context.
    """
    starts = np.arange(0, max(1, num_targets - (seq_len - stride)), stride)
    return [Windows(starts[:1], seq_len), Windows(starts[1:], stride)]


def in_chunks(
    windows: Sequence[Windows], num_targets: int, seq_len: int, chunk_targets: int
) -> list[list[Windows]]:
    """Return the windows of every chunk of `chunk_targets` targets, in order.

    A window belongs to the chunk of the first target that it scores. A chunk's targets are
    therefore all scored once its windows and those of earlier chunks are.
    """
    chunks: list[list[Windows]] = [[] for _ in range(max(1, -(-num_targets // chunk_targets)))]
    for starts, scored in windows:
        numbers = (starts + seq_len - scored) // chunk_targets
        for number in np.unique(numbers):
            chunks[number].append(Windows(starts[numbers == number], scored))
    return chunks
