"""The cross-entropy of softcapped logits, without storing them in float32.

Shape suffixes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class SoftcappedCrossEntropy(torch.autograd.Function):
    """Nats of each target under softmax(softcap * tanh(hidden @ weight.T / softcap)).

    Only the raw products (N, V), in the compute dtype, and the log-normaliser (N,) are kept for
    the backward pass.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float
    ) -> Tensor:
        """Return the loss of every target in nats, (N,), float32 (float64 in float64)."""
        products_NV = hidden_ND @ weight_VD.T
        logits_NV = softcapped(products_NV, softcap)
        # Logits are at most the softcap, so that no pass over them for the largest is needed.
        normaliser_N = (logits_NV - softcap).exp().sum(dim=-1).log() + softcap
        nats_N = normaliser_N - logits_NV.gather(1, targets_N[:, None]).squeeze(1)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, products_NV, normaliser_N)
        ctx.softcap = softcap  # pyright: ignore[reportAttributeAccessIssue]
        return nats_N

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_N: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None]:
        """Return the gradients of hidden (N, D) and of weight (V, D) if it is trained."""
        hidden_ND, weight_VD, targets_N, products_NV, normaliser_N = ctx.saved_tensors
        logits_NV = softcapped(products_NV, ctx.softcap)
        vocabulary = torch.arange(weight_VD.size(0), device=targets_N.device)
        is_target_NV = vocabulary[None, :] == targets_N[:, None]
        slope_NV = 1 - (logits_NV / ctx.softcap).square()  # of the softcap: tanh' = 1 - tanh^2
        error_NV = (logits_NV - normaliser_N[:, None]).exp() - is_target_NV.to(logits_NV.dtype)
        grad_NV = (grad_N[:, None] * error_NV * slope_NV).to(products_NV.dtype)
        grad_hidden = grad_NV @ weight_VD
        grad_weight = grad_NV.T @ hidden_ND if ctx.needs_input_grad[1] else None
        return grad_hidden, grad_weight, None, None


def softcapped(products_NV: Tensor, softcap: float) -> Tensor:
    """Return logits in float32 or wider from raw products with the embedding."""
    wide = products_NV.to(torch.promote_types(products_NV.dtype, torch.float32))
    return softcap * torch.tanh(wide / softcap)


def target_nats(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, softcap: float) -> Tensor:
    """Return the loss of every target in nats, (N,); see `SoftcappedCrossEntropy`."""
    return SoftcappedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, softcap)  # pyright: ignore[reportReturnType]


LEFT_OUT_BITS = 24


def predicted(products_NV: Tensor, impossible_NV: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Return the logits that a text is scored by, and their log-normaliser, (N, V) and (N,).

    A token that never follows the one before it (`data.successors`) keeps a share of 2^-24, since
    tokens that were encoded elsewhere may have it; the others share the rest as softmax has it.
    """
    logits_NV = softcapped(products_NV, softcap)
    possible_NV = (logits_NV - softcap).exp().masked_fill(impossible_NV, 0)
    left_out_N = impossible_NV.sum(dim=-1) * 2.0**-LEFT_OUT_BITS
    normaliser_N = possible_NV.sum(dim=-1).log() + softcap - torch.log1p(-left_out_N)
    constant_N1 = normaliser_N[:, None] - LEFT_OUT_BITS * math.log(2)
    return torch.where(impossible_NV, constant_N1, logits_NV), normaliser_N


def predicted_nats(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    impossible_VV: Tensor,
    previous_N: Tensor,
    targets_N: Tensor,
    softcap: float,
) -> Tensor:
    """Return what every target costs in nats behind the token before it, (N,); see `predicted`."""
    logits_NV, normaliser_N = predicted(hidden_ND @ weight_VD.T, impossible_VV[previous_N], softcap)
    return normaliser_N - logits_NV.gather(1, targets_N[:, None]).squeeze(1)
