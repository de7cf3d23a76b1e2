# pyright: reportMissingImports=false, reportIndexIssue=false
"""The residual stream: what enters a block, what its MLP reads, and sums over blocks.

Shape suffixes: N tokens (any number of dimensions), D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 4
"""Tokens that a program computes at a time (but one, where it keeps sums over tokens)."""


@triton.jit
def _rounded(x):
    return x.to(tl.bfloat16).to(tl.float32)


@triton.jit
def _normed(x, D: tl.constexpr, EPS: tl.constexpr):
    """Return rows / their root mean square, and the reciprocal of that."""
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + EPS)[:, None]
    return x * scale, scale


@triton.jit
def _norm_backward(x, grad, D: tl.constexpr, EPS: tl.constexpr):
    """Return the gradient of rows from that of the same, normalised."""
    unit, scale = _normed(x, D, EPS)
    return scale * (grad - unit * (tl.sum(grad * unit, 1) / D)[:, None])


@triton.jit
def _join_kernel(
    X, Y, SCALE, OUT, NORMED, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    place, inside = row * D + i, (row < rows) & (i < D)
    x = tl.load(X + place, inside, 0.0).to(tl.float32)
    x = _rounded(x + tl.load(Y + place, inside, 0.0).to(tl.float32))
    tl.store(OUT + place, x.to(tl.bfloat16), inside)
    normed, _ = _normed(x, D, EPS)
    tl.store(NORMED + place, (normed * _rounded(tl.load(SCALE))).to(tl.bfloat16), inside)


@triton.jit
def _join_backward_kernel(
    X, SCALE, GRAD_X, GRAD_NORMED, OUT, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    place, inside = row * D + i, (row < rows) & (i < D)
    x = tl.load(X + place, inside, 0.0).to(tl.float32)
    grad = tl.load(GRAD_NORMED + place, inside, 0.0).to(tl.float32) * _rounded(tl.load(SCALE))
    out = _norm_backward(x, grad, D, EPS)
    out += tl.load(GRAD_X + place, inside, 0.0).to(tl.float32)
    tl.store(OUT + place, out.to(tl.bfloat16), inside)


@triton.jit
def _merged(X, SKIP, WEIGHT, GATE, place, inside, i, D: tl.constexpr, SKIPS: tl.constexpr):
    """Return the stream, the skip, both merged, and the weight and gate of the skip."""
    x = tl.load(X + place, inside, 0.0).to(tl.float32)
    if SKIPS:
        skip = tl.load(SKIP + place, inside, 0.0).to(tl.float32)
        weight = _rounded(tl.load(WEIGHT + i, i < D, 0.0))
        gate = _rounded(tl.sigmoid(tl.load(GATE + i, i < D, 0.0)))
        merged = _rounded(gate * x + (1 - gate) * weight * skip)
    else:
        skip, weight, gate, merged = x, x, x, x
    return x, skip, merged, weight, gate


@triton.jit
def _enter_kernel(
    X, X0, SKIP, MIX, WEIGHT, GATE, SCALE, OUT, NORMED, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    SKIPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    place, inside = row * D + i, (row < rows) & (i < D)
    _, _, x, _, _ = _merged(X, SKIP, WEIGHT, GATE, place, inside, i, D, SKIPS)
    x0 = tl.load(X0 + place, inside, 0.0).to(tl.float32)
    mix, mix0 = tl.load(MIX + i, i < D, 0.0), tl.load(MIX + D + i, i < D, 0.0)
    x = _rounded(_rounded(mix) * x + _rounded(mix0) * x0)
    tl.store(OUT + place, x.to(tl.bfloat16), inside)
    normed, _ = _normed(x, D, EPS)
    tl.store(NORMED + place, (normed * _rounded(tl.load(SCALE))).to(tl.bfloat16), inside)


@triton.jit
def _enter_backward_kernel(
    X, X0, SKIP, MIX, WEIGHT, GATE, SCALE, GRAD_X, GRAD_NORMED,
    OUT_X, OUT_X0, OUT_SKIP, SUMS, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    SKIPS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK)[None, :]
    mix = _rounded(tl.load(MIX + i, i < D, 0.0))
    mix0 = _rounded(tl.load(MIX + D + i, i < D, 0.0))
    of_mix = tl.zeros((ROWS, BLOCK), tl.float32)
    of_mix0 = tl.zeros((ROWS, BLOCK), tl.float32)
    of_weight = tl.zeros((ROWS, BLOCK), tl.float32)
    of_gate = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, PROGRAMS * ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        place, inside = row.to(tl.int64) * D + i, (row < rows) & (i < D)
        x, skip, merged, weight, gate = _merged(X, SKIP, WEIGHT, GATE, place, inside, i, D, SKIPS)
        x0 = tl.load(X0 + place, inside, 0.0).to(tl.float32)
        grad = tl.load(GRAD_NORMED + place, inside, 0.0).to(tl.float32) * _rounded(tl.load(SCALE))
        grad = _norm_backward(_rounded(mix * merged + mix0 * x0), grad, D, EPS)
        grad += tl.load(GRAD_X + place, inside, 0.0).to(tl.float32)
        tl.store(OUT_X0 + place, (mix0 * grad).to(tl.bfloat16), inside)
        of_mix0 += grad * x0
        of_mix += grad * merged
        grad *= mix
        if SKIPS:
            of_gate += grad * (x - weight * skip) * gate * (1 - gate)
            of_weight += grad * (1 - gate) * skip
            tl.store(OUT_SKIP + place, (grad * (1 - gate) * weight).to(tl.bfloat16), inside)
            grad *= gate
        tl.store(OUT_X + place, grad.to(tl.bfloat16), inside)
    channel = tl.arange(0, BLOCK)
    sums = SUMS + tl.program_id(0) * (4 if SKIPS else 2) * D + channel
    tl.store(sums, tl.sum(of_mix, 0), channel < D)
    tl.store(sums + D, tl.sum(of_mix0, 0), channel < D)
    if SKIPS:
        tl.store(sums + 2 * D, tl.sum(of_weight, 0), channel < D)
        tl.store(sums + 3 * D, tl.sum(of_gate, 0), channel < D)


class Enter(torch.autograd.Function):
    """What enters a block: the stream, a skip merged into it, mixed with the embedding; its norm.

    `model.gpt.merge_skip` and the beginning of `model.gpt.Block` are the same in plain PyTorch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        x0_ND: Tensor,
        skip_ND: Tensor | None,
        weight_D: Tensor | None,
        gate_D: Tensor | None,
        mix_2D: Tensor,
        scale: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the mixed stream and that, normalised, times `scale`, a scalar; both (N, D)."""
        D = x_ND.size(-1)
        rows, block = x_ND.numel() // D, triton.next_power_of_2(D)
        out, normed = torch.empty_like(x_ND), torch.empty_like(x_ND)
        _enter_kernel[(triton.cdiv(rows, _ROWS),)](
            x_ND, x0_ND, skip_ND, mix_2D, weight_D, gate_D, scale, out, normed, rows,
            D, block, eps, _ROWS, skip_ND is not None,
        )  # fmt: skip
        ctx.save_for_backward(x_ND, x0_ND, skip_ND, mix_2D, weight_D, gate_D, scale)
        ctx.eps = eps
        return out, normed

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor, grad_normed: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the streams, of the skip and its factors, and of the mix."""
        x_ND, _, skip_ND, *_ = saved = ctx.saved_tensors
        D = x_ND.size(-1)
        rows, block, skips = x_ND.numel() // D, triton.next_power_of_2(D), skip_ND is not None
        out, out0 = torch.empty_like(x_ND), torch.empty_like(x_ND)
        out_skip = torch.empty_like(x_ND) if skips else None
        programs = _programs(x_ND, rows)
        sums = x_ND.new_empty(programs, 4 if skips else 2, D, dtype=torch.float32)
        _enter_backward_kernel[(programs,)](
            *saved, grad.contiguous(), grad_normed.contiguous(), out, out0, out_skip, sums, rows,
            D, block, ctx.eps, 1, skips, programs, num_warps=1,
        )  # fmt: skip
        mix, mix0, *of_skip = sums.sum(0)
        weight, gate = of_skip if skips else (None, None)
        return out, out0, out_skip, weight, gate, torch.stack([mix, mix0]), None, None


def _programs(x: Tensor, rows: int) -> int:
    """Return how many programs share the rows, each of which adds up what it has seen."""
    device = torch.cuda.get_device_properties(x.device)
    return min(rows, 8 * device.multi_processor_count)


class Join(torch.autograd.Function):
    """The stream with a block's attention added, and the normalised sum, which the MLP reads."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, y_ND: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + y and that, normalised, times `scale`, a scalar; both (N, D)."""
        out, normed = torch.empty_like(x_ND), torch.empty_like(x_ND)
        _launch(_join_kernel, x_ND, y_ND, scale, out, normed, eps=eps)
        ctx.save_for_backward(out, scale)
        ctx.eps = eps
        return out, normed

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor, grad_normed: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradient of x, which is also that of y."""
        x_ND, scale = ctx.saved_tensors
        out = torch.empty_like(x_ND)
        grads = grad.contiguous(), grad_normed.contiguous()
        _launch(_join_backward_kernel, x_ND, scale, *grads, out, eps=ctx.eps)
        return out, out, None, None


def _launch(kernel: Any, x_ND: Tensor, *tensors: Tensor, eps: float) -> None:
    D = x_ND.size(-1)
    rows = x_ND.numel() // D
    kernel[(triton.cdiv(rows, _ROWS),)](
        x_ND, *tensors, rows, D, triton.next_power_of_2(D), eps, _ROWS
    )


@triton.jit
def _sum_kernel(TENSORS, OUT, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in tl.static_range(len(TENSORS)):
        total += tl.load(TENSORS[number] + i, i < size, 0.0).to(tl.float32)
    tl.store(OUT + i, total.to(tl.bfloat16), i < size)


def _sum(tensors: tuple[Tensor, ...]) -> Tensor:
    tensors = tuple(tensor.contiguous() for tensor in tensors)
    out = torch.empty_like(tensors[0])
    _sum_kernel[(triton.cdiv(out.numel(), 1024),)](tensors, out, out.numel(), 1024)
    return out


class Sum(torch.autograd.Function):
    """The sum of tensors of one shape, bfloat16, rounded once."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        """Return the sum."""
        ctx.count = len(tensors)
        return _sum(tensors)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradient for each tensor."""
        return (grad,) * ctx.count


class Share(torch.autograd.Function):
    """A tensor for several readers, whose gradients are added in one pass, not pair by pair."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, readers: int) -> tuple[Tensor, ...]:
        """Return the tensor once for each reader."""
        return tuple(x.view_as(x) for _ in range(readers))

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        """Return the sum of the readers' gradients."""
        return _sum(grads), None
