# pyright: reportMissingImports=false, reportIndexIssue=false
"""The cross-entropy of softcapped logits: one kernel reads the products of a token and finishes.

With r = 1 / (1 + exp(2 x / softcap)) of a product x, tanh(x / softcap) = 1 - 2 r: so the logit is
softcap - 2 softcap r, at most the softcap, and the derivative of the softcap is 4 (r - r^2).

Shape suffixes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.model.losses import LEFT_OUT_BITS


@triton.jit
def _r_of(products, CAP: tl.constexpr):
    # One instruction instead of a division's eight, exact to the last bit but one.
    x = 1 + tl.exp(products * (2 / CAP))
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def _row(PRODUCTS, row, V: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """Return r of the products in a row, and exp(logit - softcap), 0 behind the row."""
    i = tl.arange(0, BLOCK)
    inside = i < V
    r = _r_of(tl.load(PRODUCTS + row * V + i, inside, 0.0).to(tl.float32), CAP)
    share = tl.exp(-2 * CAP * r)
    if BLOCK > V:
        share = tl.where(inside, share, 0.0)
    return i, inside, r, share


@triton.jit
def _weighted_loss_kernel(
    PRODUCTS, TARGETS, WEIGHTS, OUT,
    V: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target, weight = tl.load(TARGETS + row), tl.load(WEIGHTS + row)
    # Before the barrier of the sum, behind which the products are overwritten.
    of_target = _r_of(tl.load(PRODUCTS + row * V + target).to(tl.float32), CAP)
    i, inside, r, share = _row(PRODUCTS, row, V, CAP, BLOCK)
    total = tl.sum(share, 0)
    tl.store(OUT + row, weight * (tl.log(total) + 2 * CAP * of_target))
    factor = 4 * weight
    grad = (share * (factor / total) - tl.where(i == target, factor, 0.0)) * (r - r * r)
    tl.store(PRODUCTS + row * V + i, grad.to(tl.bfloat16), inside)


@triton.jit
def _nats_kernel(
    PRODUCTS, IMPOSSIBLE, PREVIOUS, TARGETS, OUT,
    V: tl.constexpr, CAP: tl.constexpr, LEFT_OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(TARGETS + row)
    of_target = 2 * CAP * _r_of(tl.load(PRODUCTS + row * V + target).to(tl.float32), CAP)
    i, inside, _, share = _row(PRODUCTS, row, V, CAP, BLOCK)
    if LEFT_OUT > 0:
        # `model.losses.predicted`: impossible tokens keep 2^-LEFT_OUT each.
        impossible = IMPOSSIBLE + tl.load(PREVIOUS + row).to(tl.int64) * V
        left_out = tl.load(impossible + i, inside, 0) != 0
        total = tl.sum(tl.where(left_out, 0.0, share), 0)
        kept = 1 - tl.sum(left_out.to(tl.float32), 0) * 0.5**LEFT_OUT
        is_left_out = tl.load(impossible + target) != 0
        own = tl.where(is_left_out, LEFT_OUT * 0.6931471805599453, tl.log(total / kept) + of_target)
    else:
        own = tl.log(tl.sum(share, 0)) + of_target
    tl.store(OUT + row, own)


def _warps(block: int) -> int:
    return min(32, max(4, block // 2048))


class WeightedLoss(torch.autograd.Function):
    """The sum of all targets' nats, each times a weight.

    The weights are known in the forward pass; so it writes the gradient of the products over them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        softcap: float,
    ) -> Tensor:
        """Return the sum, float32; hidden and weight are bfloat16, the targets' weights float32."""
        products_NV = hidden_ND @ weight_VD.T
        loss_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        block = triton.next_power_of_2(len(weight_VD))
        _weighted_loss_kernel[(len(loss_N),)](
            products_NV, targets_N, weights_N, loss_N, len(weight_VD), softcap, block,
            num_warps=_warps(block),
        )  # fmt: skip
        ctx.save_for_backward(hidden_ND, weight_VD, products_NV)
        return loss_N.sum()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None]:
        """Return the gradients of hidden (N, D) and of weight (V, D) if it is trained."""
        hidden_ND, weight_VD, grad_NV = ctx.saved_tensors
        # First: a product alone would find no CUDA context in autograd's thread, and warn.
        grad_hidden = grad_NV @ (weight_VD * grad)
        grad_weight = (grad_NV.T @ hidden_ND) * grad if ctx.needs_input_grad[1] else None
        return grad_hidden, grad_weight, None, None, None


def nats(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    impossible_VV: Tensor | None,
    previous_N: Tensor,
    targets_N: Tensor,
    softcap: float,
) -> Tensor:
    """Return the nats of every target, (N,), float32; see `model.losses.predicted_nats`."""
    products_NV = hidden_ND @ weight_VD.T
    out_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
    block = triton.next_power_of_2(len(weight_VD))
    left_out, impossible = 0, None
    if impossible_VV is not None:
        left_out, impossible = LEFT_OUT_BITS, impossible_VV.view(torch.uint8)
    _nats_kernel[(len(out_N),)](
        products_NV, impossible, previous_N, targets_N, out_N, len(weight_VD), softcap, left_out,
        block, num_warps=_warps(block),
    )  # fmt: skip
    return out_N
