# pyright: reportMissingImports=false, reportIndexIssue=false
"""Queries, keys and values before attention, and XSA behind it, each in one pass.

Shape suffixes as in `model.attention`; S = H + 2K heads of queries, keys and values together.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16
"""(token, head) pairs of one program."""


@triton.jit
def _normed_and_turned(
    X, COS, SIN, row, token, turns, inside, T, D: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr
):
    """Return x / rms, 1 / rms, the same rotated, and cosines and signed sines, of rows of X."""
    i = tl.arange(0, D)
    partner = tl.where(i < R, i + R, tl.where(i < 2 * R, i - R, i))
    mask = inside[:, None]
    x = tl.load(X + row[:, None] * D + i[None, :], mask, 0.0).to(tl.float32)
    rotated = mask & (i < 2 * R)[None, :]
    y = tl.load(X + row[:, None] * D + partner[None, :], rotated, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + EPS)[:, None]
    x = (x * scale).to(tl.bfloat16).to(tl.float32)
    y = (y * scale).to(tl.bfloat16).to(tl.float32)
    turned = turns[:, None] & (i < 2 * R)[None, :]
    angle = (token % T)[:, None] * R + (i % R)[None, :]
    cos = tl.load(COS + angle, turned, 1.0)
    sin = tl.load(SIN + angle, turned, 0.0)
    sin = tl.where((i < R)[None, :], -sin, sin)
    return x, scale, x * cos + y * sin, cos, sin


@triton.jit
def _heads_kernel(
    X, COS, SIN, GAIN, QUERY, KEY, rows, T,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    token, head = row // (H + K), row % (H + K)
    i = tl.arange(0, D)[None, :]
    source = token * (H + 2 * K) + head
    _, _, turned, _, _ = _normed_and_turned(
        X, COS, SIN, source, token, inside, inside, T, D, R, EPS
    )
    gain = tl.load(GAIN + head, inside & (head < H), 1.0).to(tl.bfloat16).to(tl.float32)
    out = (turned.to(tl.bfloat16).to(tl.float32) * gain[:, None]).to(tl.bfloat16)
    query, key = QUERY + (token * H + head) * D, KEY + (token * K + head - H) * D
    tl.store(tl.where(head < H, query, key)[:, None] + i, out, inside[:, None])


@triton.jit
def _place(
    QUERY, KEY, VALUE, token, head, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Return the address of each head, in one of three tensors."""
    query = QUERY + (token * H + head) * D
    key = KEY + (token * K + head - H) * D
    value = VALUE + (token * K + head - H - K) * D
    return tl.where(head < H, query, tl.where(head < H + K, key, value))


@triton.jit
def _heads_backward_kernel(
    X, COS, SIN, GAIN, GRAD_QUERY, GRAD_KEY, GRAD_VALUE, GRAD_COPY, OUT, GRAD_GAIN, rows, T,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    token, head = row // (H + 2 * K), row % (H + 2 * K)
    i = tl.arange(0, D)
    partner = tl.where(i < R, i + R, tl.where(i < 2 * R, i - R, i))[None, :]
    i = i[None, :]
    x, scale, turned, cos, sin = _normed_and_turned(
        X, COS, SIN, row, token, inside & (head < H + K), inside, T, D, R, EPS
    )
    source = _place(GRAD_QUERY, GRAD_KEY, GRAD_VALUE, token, head, H, K, D)[:, None]
    given = tl.load(source + i, inside[:, None], 0.0).to(tl.float32)
    copied = (inside & (head >= H + K))[:, None]
    copy = GRAD_COPY + (token * K + head - H - K)[:, None] * D
    given += tl.load(copy + i, copied, 0.0).to(tl.float32)
    rotated = inside[:, None] & (i < 2 * R)
    of_partner = tl.load(source + partner, rotated, 0.0).to(tl.float32)
    tl.store(GRAD_GAIN + row, tl.sum(given * turned, 1), inside)
    gain = tl.load(GAIN + head, inside & (head < H), 1.0).to(tl.bfloat16).to(tl.float32)
    grad = (given * cos - of_partner * sin) * gain[:, None]  # turned back
    grad = scale * (grad - x * (tl.sum(grad * x, 1) / D)[:, None])
    out = tl.where((head < H + K)[:, None], grad, given).to(tl.bfloat16)
    tl.store(OUT + row[:, None] * D + i, out, inside[:, None])


class Heads(torch.autograd.Function):
    """Queries and keys normalised, rotated and (queries) scaled by a gain; values as they are."""

    @staticmethod
    def forward(
        ctx: Any, x_BTSd: Tensor, cos: Tensor, sin: Tensor, gain_H: Tensor, keys: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q (B, T, H, d), k, v and v again (B, T, K, d) from all heads, for K = `keys`.

        The values stay in the memory of x. Attention and XSA each take one v, so that the backward
        pass adds both gradients here.
        """
        B, T, S, size = x_BTSd.shape
        queries = S - 2 * keys
        q, k = (x_BTSd.new_empty(B, T, heads, size) for heads in (queries, keys))
        rows = B * T * (queries + keys)
        _heads_kernel[(triton.cdiv(rows, _ROWS),)](
            x_BTSd, cos, sin, gain_H, q, k, rows, T, queries, keys, size, cos.size(1), eps, _ROWS,
            num_warps=2,
        )  # fmt: skip
        ctx.save_for_backward(x_BTSd, cos, sin, gain_H)
        ctx.eps = eps
        v = x_BTSd[:, :, -keys:]
        return q, k, v, v.view_as(v)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None, Tensor, None, None]:
        """Return the gradients of all heads and of the gain."""
        x_BTSd, cos, sin, gain_H = ctx.saved_tensors
        out, grad_gain_BTS = (
            torch.empty_like(x_BTSd), x_BTSd.new_empty(x_BTSd.shape[:3], dtype=torch.float32)
        )  # fmt: skip
        queries, keys, rows = grads[0].size(2), grads[1].size(2), grad_gain_BTS.numel()
        _heads_backward_kernel[(triton.cdiv(rows, _ROWS),)](
            x_BTSd, cos, sin, gain_H, *(grad.contiguous() for grad in grads), out, grad_gain_BTS,
            rows, x_BTSd.size(1), queries, keys, x_BTSd.size(3), cos.size(1), ctx.eps, _ROWS,
            num_warps=2,
        )  # fmt: skip
        return out, None, None, grad_gain_BTS[:, :, :queries].sum((0, 1)), None, None


# XSA.


@triton.jit
def _direction(VALUE, stride, row, inside, K: tl.constexpr, D: tl.constexpr):
    """Return values / their lengths, and 1 / their lengths, of rows (token, key and value head)."""
    place = row // K * stride + row % K * D
    value = tl.load(VALUE + place[:, None] + tl.arange(0, D)[None, :], inside, 0.0).to(tl.float32)
    scale = 1 / tl.maximum(tl.sqrt(tl.sum(value * value, 1)), 1e-12)[:, None]
    return value * scale, scale


@triton.jit
def _xsa_kernel(
    Y, VALUE, stride, OUT, rows,
    GROUP: tl.constexpr, K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None]
    i = tl.arange(0, D)[None, :]
    direction, _ = _direction(VALUE, stride, row, inside, K, D)
    for head in tl.static_range(GROUP):
        place = (row[:, None] * GROUP + head) * D + i
        y = tl.load(Y + place, inside, 0.0).to(tl.float32)
        out = y - tl.sum(y * direction, 1)[:, None] * direction
        tl.store(OUT + place, out.to(tl.bfloat16), inside)


@triton.jit
def _xsa_backward_kernel(
    Y, VALUE, stride, GRAD, OUT, OUT_VALUE, rows,
    GROUP: tl.constexpr, K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None]
    i = tl.arange(0, D)[None, :]
    direction, scale = _direction(VALUE, stride, row, inside, K, D)
    of_direction = tl.zeros((ROWS, D), tl.float32)
    for head in tl.static_range(GROUP):
        place = (row[:, None] * GROUP + head) * D + i
        y = tl.load(Y + place, inside, 0.0).to(tl.float32)
        grad = tl.load(GRAD + place, inside, 0.0).to(tl.float32)
        along = tl.sum(grad * direction, 1)[:, None]
        tl.store(OUT + place, (grad - along * direction).to(tl.bfloat16), inside)
        of_direction -= along * y + tl.sum(y * direction, 1)[:, None] * grad
    out = of_direction - tl.sum(of_direction * direction, 1)[:, None] * direction
    tl.store(OUT_VALUE + row[:, None] * D + i, (out * scale).to(tl.bfloat16), inside)


class Xsa(torch.autograd.Function):
    """`model.attention.exclude_self_value`."""

    @staticmethod
    def forward(ctx: Any, y_BTHd: Tensor, v_BTKd: Tensor) -> Tensor:
        """Return what is left of y, (B, T, H, d). The heads of one token's values are adjacent."""
        ctx.save_for_backward(y_BTHd, v_BTKd)
        out = torch.empty_like(y_BTHd)
        _launch_xsa(_xsa_kernel, y_BTHd, v_BTKd, out)
        return out

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of y and v."""
        y_BTHd, v_BTKd = ctx.saved_tensors
        out, out_value = torch.empty_like(y_BTHd), v_BTKd.new_empty(v_BTKd.shape)
        _launch_xsa(_xsa_backward_kernel, y_BTHd, v_BTKd, grad.contiguous(), out, out_value)
        return out, out_value


def _launch_xsa(kernel: Any, y_BTHd: Tensor, v_BTKd: Tensor, *tensors: Tensor) -> None:
    keys, size = v_BTKd.shape[2:]
    rows = v_BTKd.numel() // size
    kernel[(triton.cdiv(rows, _ROWS),)](
        y_BTHd, v_BTKd, v_BTKd.stride(1), *tensors, rows, y_BTHd.size(2) // keys, keys, size, _ROWS
    )
