# pyright: reportMissingImports=false, reportIndexIssue=false
"""The MLP: a matrix product whose result is squared, and the derivative of that.

Shape suffixes: D width, F hidden width of the MLP.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

_M_BLOCK, _N_BLOCK, _K_BLOCK = 128, 256, 64
"""The width is a multiple of the third, the hidden width of the second: see `support`."""


@triton.jit
def _finished(total, SQUARE, m, n, SLOPE: tl.constexpr, BACKWARD: tl.constexpr):
    """Return the part of the result at (m, n) from the product there."""
    if BACKWARD:
        square = SQUARE.load([m, n])
        root = tl.sqrt(square.to(tl.float32))
        negative = (square.to(tl.int16, bitcast=True) & 1) == 1
        finished = (total * tl.where(negative, -2 * SLOPE * root, 2 * root)).to(tl.bfloat16)
    else:
        leaky = tl.where(total > 0, total, SLOPE * total)
        # Rounded to the nearest number whose last bit says whether the product was negative.
        odd = tl.where(total < 0, 1 << 16, 0)
        bits = (leaky * leaky).to(tl.int32, bitcast=True)
        bits = (((bits + ((1 << 16) - odd)) >> 17) << 17) + odd
        finished = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return finished


@triton.jit
def _product_kernel(
    A, B, SQUARE, OUT, rows,
    N: tl.constexpr, K: tl.constexpr, SLOPE: tl.constexpr, BACKWARD: tl.constexpr,
    M_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = N // N_BLOCK
    down = tl.cdiv(rows, M_BLOCK)
    for tile in tl.range(tl.program_id(0), down * across, PROGRAMS, flatten=True):
        # Programs that share rows of A or columns of B run at about the same time.
        first = tile // (GROUP * across) * GROUP
        height = tl.minimum(down - first, GROUP)
        within = tile % (GROUP * across)
        m = (first + within % height) * M_BLOCK
        n = within // height * N_BLOCK
        total = tl.zeros((M_BLOCK, N_BLOCK), tl.float32)
        for k in range(0, K, K_BLOCK):
            # B is (K, N) in the backward pass, and (N, K) in the forward pass.
            if BACKWARD:
                total = tl.dot(A.load([m, k]), B.load([k, n]), total)
            else:
                total = tl.dot(A.load([m, k]), B.load([n, k]).T, total)
        # In two halves, which take less shared memory on their way out.
        halves = tl.reshape(total, (M_BLOCK, 2, N_BLOCK // 2))
        left, right = tl.split(tl.permute(halves, (0, 2, 1)))
        OUT.store([m, n], _finished(left, SQUARE, m, n, SLOPE, BACKWARD))
        n += N_BLOCK // 2
        OUT.store([m, n], _finished(right, SQUARE, m, n, SLOPE, BACKWARD))


def _multiply(a: Tensor, b: Tensor, square: Tensor, out: Tensor, slope: float) -> None:
    """Write into `out`; it is the backward pass where `square` is not `out`."""
    backward = square is not out
    columns, inner = out.size(-1), a.size(-1)
    rows = a.numel() // inner
    half = [_M_BLOCK, _N_BLOCK // 2]
    tiles = triton.cdiv(rows, _M_BLOCK) * (columns // _N_BLOCK)
    programs = min(tiles, torch.cuda.get_device_properties(a.device).multi_processor_count)
    _product_kernel[(programs,)](
        TensorDescriptor.from_tensor(a.view(rows, inner), [_M_BLOCK, _K_BLOCK]),
        TensorDescriptor.from_tensor(b, [_K_BLOCK, _N_BLOCK] if backward else [_N_BLOCK, _K_BLOCK]),
        TensorDescriptor.from_tensor(square.view(rows, columns), half),
        TensorDescriptor.from_tensor(out.view(rows, columns), half),
        rows, columns, inner, slope, backward, _M_BLOCK, _N_BLOCK, _K_BLOCK, 8, programs,
        num_warps=8, num_stages=3,
    )  # fmt: skip


class SquaredMlp(torch.autograd.Function):
    """leaky_relu(x @ up.T)^2 @ down.T, and its first factor.

    The last bit of each square is the sign of what was squared: so the backward pass needs the
    squares alone, and half of the bytes are written.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up_FD: Tensor, down_DF: Tensor, slope: float
    ) -> tuple[Tensor, Tensor]:
        """Return the output (..., D) and the squares (..., F), bfloat16 as all arguments."""
        squared = x.new_empty(*x.shape[:-1], up_FD.size(0))
        _multiply(x, up_FD, squared, squared, slope)
        ctx.save_for_backward(x, up_FD, down_DF, squared)
        ctx.slope = slope
        ctx.set_materialize_grads(False)  # of the squares: zeros, written for nothing
        ctx.mark_non_differentiable(squared)
        return squared @ down_DF.T, squared

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x and of both matrices."""
        x, up_FD, down_DF, squared = ctx.saved_tensors
        grad = grad.contiguous()
        grad_product = torch.empty_like(squared)
        _multiply(grad, down_DF, squared, grad_product, ctx.slope)
        flat = [t.flatten(0, -2) for t in (grad, squared, grad_product, x)]
        return grad_product @ up_FD, flat[2].T @ flat[3], flat[0].T @ flat[1], None
