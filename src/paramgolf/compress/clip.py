"""SDClip: row scales from standard deviations (PR #1394).

Shape suffixes: M matrices, R rows, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_SCALE = 2.0**-24  # the smallest number of float16


def largest_integer(bits: int) -> int:
    """Integers lie between minus and plus this."""
    return 2 ** (bits - 1) - 1


def row_scales(matrices_MRC: Tensor, bits: int, clip: float) -> Tensor:
    """Scale of every row, (M, R) float16: clip * std(row) / largest integer.

    Raises:
        ValueError: if a scale is not finite in float16.
    """
    deviation = matrices_MRC.float().std(dim=-1, correction=0)
    scales = clip * deviation / largest_integer(bits)
    scales = scales.clamp(min=_SMALLEST_SCALE).to(torch.float16)
    if not bool(scales.isfinite().all()):
        raise ValueError("a row's scale is not finite in float16: the weights have diverged")
    return scales


def round_to_integers(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Nearest integers to values / scales within the range of `bits`; float32."""
    most = largest_integer(bits)
    return (values / scales).round().clamp(-most, most)
