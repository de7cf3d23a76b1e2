"""Scales of quantized rows and columns, on a coarse grid.

A weight is its integer times the scale of its row times the scale of its column. A row's scale is
proportional to its standard deviation, as in SDClip (PR #1394): k * std / (2^(b-1) - 1) there,
bin width * std here. Scales are powers of 2^(1/8): rounding to this grid changes a bin by at most
4.4 %, which costs nothing to first order, and a scale takes 3 bits in place of 10.

Shape suffixes: M matrices, R rows, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_INTEGER = 127
"""Integers are between -MAX_INTEGER and MAX_INTEGER."""
SCALES_PER_OCTAVE = 8
_FIRST, _LAST = -24 * SCALES_PER_OCTAVE, 16 * SCALES_PER_OCTAVE - 1  # the range of float16
_SCALES = torch.pow(
    2.0, torch.arange(_FIRST, _LAST + 1, dtype=torch.float64) / SCALES_PER_OCTAVE
).to(torch.float16)


def scales_from_exponents(exponents: Tensor) -> Tensor:
    """Return 2^(exponent / 8), float16, on the device of the exponents.

    Raises:
        ValueError: if an exponent is out of the range of float16.
    """
    index = exponents.long() - _FIRST
    if bool((index < 0).any()) or bool((index >= len(_SCALES)).any()):
        raise ValueError("a scale is out of the range of float16")
    return _SCALES.to(exponents.device)[index]


def scale_exponents(scales: Tensor) -> Tensor:
    """Return the exponents of scales, int32: the inverse of `scales_from_exponents`.

    Raises:
        ValueError: for a scale that is not on the grid.
    """
    exponents = torch.round(scales.double().log2() * SCALES_PER_OCTAVE)
    exponents = exponents.nan_to_num(_FIRST, _LAST, _FIRST).clamp(_FIRST, _LAST).int()
    if not torch.equal(scales_from_exponents(exponents), scales):
        raise ValueError("a scale is not a power of 2^(1/8)")
    return exponents


def nearest_scales(wanted: Tensor) -> Tensor:
    """Return the scale on the grid that is nearest to each positive number, float16.

    Raises:
        ValueError: if a scale is not finite in float16.
    """
    exponents = torch.round(wanted.double().clamp(min=2.0**-24).log2() * SCALES_PER_OCTAVE)
    if not bool((exponents <= _LAST).all()):
        raise ValueError("a scale is not finite in float16: the weights have diverged")
    return scales_from_exponents(exponents)


def row_scales(matrices_MRC: Tensor, bin_widths_M: Tensor) -> Tensor:
    """Return the scale of every row, (M, R) float16: bin width * std(row), on the grid."""
    deviation = matrices_MRC.float().std(dim=-1, correction=0)
    return nearest_scales(deviation.double() * bin_widths_M[:, None])


def column_scales(pivots_MC: Tensor) -> Tensor:
    """Return the scales of the columns, (M, C) float16: proportional to pivots, geometric mean 1.

    A GPTQ error e in column c costs e^2 / pivot_c^2, where pivot_c is on the diagonal of the
    Cholesky factor of the inverse Hessian. For a given number of bits (sum of the logarithms of
    the scales), the total cost is least when all columns cost the same: reverse water-filling at
    high rate (Cover & Thomas, Elements of Information Theory, 10.3).
    """
    logs = pivots_MC.double().log2()
    return nearest_scales(torch.exp2(logs - logs.mean(dim=-1, keepdim=True)))


def round_to_integers(values: Tensor, scales: Tensor) -> Tensor:
    """Return values / scales rounded to the nearest integer and clipped to the range; float32."""
    return (values / scales).round().clamp(-MAX_INTEGER, MAX_INTEGER)
