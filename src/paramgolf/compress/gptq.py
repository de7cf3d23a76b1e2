"""GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323) for batches of matrices.

Pure functions on the device of the weights; all matrices of one shape are solved together.
Shape suffixes: M matrices, R rows, C columns, N columns of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paramgolf.compress.scales import MAX_INTEGER, round_to_integers

_BLOCK_COLUMNS = 128
_DAMPING_GROWTH = 10.0
_MAX_ATTEMPTS = 6


class Factor(NamedTuple):
    """The Cholesky factor of the inverse Hessian, in the order of the solve."""

    upper_MCC: Tensor
    """Upper triangular, float32: inverse(H) = upper.T @ upper, H permuted and damped."""
    order_MC: Tensor
    """Columns by descending diagonal of H."""
    damping_M: Tensor
    """Share of the mean diagonal that was added to the diagonal; more than requested where H was
    not positive definite otherwise."""


def factor_hessians(hessians_MCC: Tensor, damping: float) -> Factor:
    """Damp, order and factor Hessians, in float64.

    Damping also handles columns that were 0 in all calibration data. It is multiplied by 10, up to
    five times, for the Hessians that are not positive definite.

    Raises:
        ValueError: if a Hessian is not finite, or cannot be factored with any damping tried.
    """
    if not bool(hessians_MCC.isfinite().all()):
        raise ValueError("a Hessian is not finite: the model has diverged")
    hessians = hessians_MCC.double()
    diagonal = hessians.diagonal(dim1=-2, dim2=-1)
    order = diagonal.argsort(dim=-1, descending=True, stable=True)
    rows = torch.arange(len(order), device=order.device)[:, None, None]
    hessians = hessians[rows, order[:, :, None], order[:, None, :]]
    mean_diagonal = diagonal.mean(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    identity = torch.eye(hessians.size(-1), dtype=hessians.dtype, device=hessians.device)
    tried = shares = torch.full_like(mean_diagonal, damping)
    for _ in range(_MAX_ATTEMPTS):
        damped = hessians + (shares * mean_diagonal)[:, None, None] * identity
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not bool(failed.any()):
                return Factor(upper.float(), order, shares)
        tried, shares = shares, torch.where(failed > 0, shares * _DAMPING_GROWTH, shares)
    raise ValueError(f"a Hessian is not positive definite even with damping {tried.max():.3g}")


def pivots(factor: Factor) -> Tensor:
    """Return the diagonals of the Cholesky factors, (M, C) float32, in original column order."""
    diagonal = factor.upper_MCC.diagonal(dim1=-2, dim2=-1)
    return torch.empty_like(diagonal).scatter_(1, factor.order_MC, diagonal)


def solve(
    matrices_MRC: Tensor, factor: Factor, rows_MR: Tensor, columns_MC: Tensor | None = None
) -> Tensor:
    """Quantize column by column, compensating each column's error in the later ones.

    Args:
        matrices_MRC: the weights, any float dtype.
        factor: from `factor_hessians`, for these matrices.
        rows_MR: scales of the rows, as stored (float16).
        columns_MC: scales of the columns, as stored (float16); None: all are 1.

    Returns:
        Integers, (M, R, C) int8, in the original column order.
    """
    M, R, C = matrices_MRC.shape
    index = factor.order_MC[:, None, :].expand(M, R, C)
    weights, upper = matrices_MRC.float(), factor.upper_MCC
    if columns_MC is not None:  # weights and inverse Hessian in units of the column scales
        weights = weights / columns_MC.float()[:, None, :]
        upper = upper / columns_MC.float().gather(1, factor.order_MC)[:, None, :]
    weights = weights.gather(2, index)
    scales = rows_MR.float()
    integers = torch.empty_like(weights)
    for begin in range(0, C, _BLOCK_COLUMNS):
        end = min(begin + _BLOCK_COLUMNS, C)
        block = weights[:, :, begin:end].clone()
        errors = torch.empty_like(block)
        upper_MNN = upper[:, begin:end, begin:end]
        for column in range(end - begin):
            values = block[:, :, column]
            quantized = round_to_integers(values, scales)
            integers[:, :, begin + column] = quantized
            error = (values - quantized * scales) / upper_MNN[:, column, column, None]
            block[:, :, column:] -= error[:, :, None] * upper_MNN[:, None, column, column:]
            errors[:, :, column] = error
        weights[:, :, end:] -= errors @ upper[:, begin:end, end:]
    return torch.empty_like(integers).scatter_(2, index, integers).to(torch.int8)


class MatrixReport(NamedTuple):
    """The quality of one quantized matrix."""

    gptq_error: float
    """trace(E H E^T) / trace(W H W^T), E = W - quantized W."""
    nearest_error: float
    """The same for rounding to nearest."""
    clipped_share: float
    """Share of the integers at the ends of their range."""
    entropy_bits: float
    """Order-0 entropy of the integers, bits per weight."""
    damping: float
    """Share of the mean diagonal that was added to the Hessian's diagonal."""


def report(
    matrix_RC: Tensor, hessian_CC: Tensor, integers_RC: Tensor, scales_RC: Tensor, damping: float
) -> MatrixReport:
    """Measure the quantization of one matrix against its undamped Hessian, in float64.

    Args:
        matrix_RC: the weights.
        hessian_CC: their Hessian.
        integers_RC: from `solve`.
        scales_RC: scale of every weight (row times column), float32, on the same device.
        damping: the damping used, copied into the report.
    """
    weights, hessian = matrix_RC.double(), hessian_CC.double()
    scales = scales_RC.double()

    def energy(difference: Tensor) -> float:
        return float(((difference @ hessian) * difference).sum())

    nearest = round_to_integers(matrix_RC.float(), scales_RC.float()).double()
    whole = max(energy(weights), torch.finfo(torch.float64).tiny)
    shifted = integers_RC.flatten().long() + MAX_INTEGER
    counts = torch.bincount(shifted, minlength=2 * MAX_INTEGER + 1)
    shares = counts[counts > 0].double() / counts.sum()
    return MatrixReport(
        gptq_error=energy(weights - integers_RC.double() * scales) / whole,
        nearest_error=energy(weights - nearest * scales) / whole,
        clipped_share=float((integers_RC.abs() == MAX_INTEGER).double().mean()),
        entropy_bits=float(-(shares * shares.log2()).sum()),
        damping=damping,
    )
