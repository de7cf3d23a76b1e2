"""Scales of quantized rows and columns, on a coarse grid.

A weight is its integer times the scale of its row times that of its column. A row's scale follows
its standard deviation, as SDClip's does (PR #1394): k * std / (2^(b-1) - 1) there, step * std here.
A scale is a power of 2^(1/8). Which one is nearest to the wanted scale moves a step by at most
4.4 %, to second order free of charge, and takes 3 bits to say instead of 10.

Shape suffixes: M matrices, R rows, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_INTEGER = 127
"""Integers lie between minus and plus this."""
STEPS_PER_OCTAVE = 8
_FIRST, _LAST = -24 * STEPS_PER_OCTAVE, 16 * STEPS_PER_OCTAVE - 1  # the range of float16
_SCALES = torch.pow(
    2.0, torch.arange(_FIRST, _LAST + 1, dtype=torch.float64) / STEPS_PER_OCTAVE
).to(torch.float16)


def scales_from_exponents(exponents: Tensor) -> Tensor:
    """2^(exponent / 8), float16, on the device of the exponents.

    Raises:
        ValueError: if one is out of the range of float16.
    """
    index = exponents.long() - _FIRST
    if bool((index < 0).any()) or bool((index >= len(_SCALES)).any()):
        raise ValueError("a scale is out of the range of float16")
    return _SCALES.to(exponents.device)[index]


def scale_exponents(scales: Tensor) -> Tensor:
    """The reverse of `scales_from_exponents`, int32.

    Raises:
        ValueError: for a scale that is not on the grid.
    """
    exponents = torch.round(scales.double().log2() * STEPS_PER_OCTAVE)
    exponents = exponents.nan_to_num(_FIRST, _LAST, _FIRST).clamp(_FIRST, _LAST).int()
    if not torch.equal(scales_from_exponents(exponents), scales):
        raise ValueError("a scale is no power of 2^(1/8)")
    return exponents


def nearest_scales(wanted: Tensor) -> Tensor:
    """The scales on the grid that are nearest to some positive numbers, float16.

    Raises:
        ValueError: if one is not finite in float16.
    """
    exponents = torch.round(wanted.double().clamp(min=2.0**-24).log2() * STEPS_PER_OCTAVE)
    if not bool((exponents <= _LAST).all()):
        raise ValueError("a scale is not finite in float16: the weights have diverged")
    return scales_from_exponents(exponents)


def row_scales(matrices_MRC: Tensor, steps_M: Tensor) -> Tensor:
    """Scale of every row, (M, R) float16: step * std(row), on the grid."""
    deviation = matrices_MRC.float().std(dim=-1, correction=0)
    return nearest_scales(deviation.double() * steps_M[:, None])


def column_scales(pivots_MC: Tensor) -> Tensor:
    """Scale of every column, (M, C) float16, proportional to its pivot, geometric mean 1.

    An error of GPTQ in column c costs its square over pivot_c^2, where pivot_c is the diagonal of
    the inverse Hessian's Cholesky factor. Sum of costs and sum of logarithms of scales (the bits)
    are in balance when all columns cost the same: reverse water-filling at high rate (Cover &
    Thomas, Elements of Information Theory, 10.3).
    """
    logs = pivots_MC.double().log2()
    return nearest_scales(torch.exp2(logs - logs.mean(dim=-1, keepdim=True)))


def round_to_integers(values: Tensor, scales: Tensor) -> Tensor:
    """Nearest integers to values / scales within their range; float32."""
    return (values / scales).round().clamp(-LARGEST_INTEGER, LARGEST_INTEGER)
