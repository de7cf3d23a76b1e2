# pyright: reportMissingImports=false, reportIndexIssue=false
"""Triton kernels of a block, for models that compute in bfloat16 on a GPU.

Each replaces several passes over the activations, which are limited by memory, by one: the squared
leaky ReLU moves into the matrix product before it (and its derivative into the one before that);
norm, rotation and gain of queries and keys are one pass, and so is XSA. They compute in float32
and round where the plain code of `model.attention` and `model.gpt` rounds.

Shape suffixes as in `model.attention`; F hidden width of the MLP; S = H + 2K heads of queries,
keys and values together.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paramgolf.config import ModelConfig

_ROWS = 16
"""(token, head) pairs of one program."""
_K_BLOCK = 64
_N_BLOCK = 256


def support(config: ModelConfig) -> bool:
    """Return whether the kernels can compute a model of this shape."""
    power_of_two = config.head_dim & (config.head_dim - 1) == 0
    hidden = config.width * config.mlp_ratio
    return power_of_two and config.width % _K_BLOCK == 0 and hidden % _N_BLOCK == 0


# The MLP: a matrix product whose result is squared, and the derivative of that.


@triton.jit
def _product_kernel(
    A,
    B,
    PRODUCT,
    OUT,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    SLOPE: tl.constexpr,
    BACKWARD: tl.constexpr,
    WHOLE: tl.constexpr,
    M_BLOCK: tl.constexpr,
    N_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Programs that share rows of A or columns of B run at about the same time.
    across: tl.constexpr = N // N_BLOCK
    program = tl.program_id(0)
    first = program // (GROUP * across) * GROUP
    height = tl.minimum(tl.cdiv(rows, M_BLOCK) - first, GROUP)
    within = program % (GROUP * across)
    m = ((first + within % height) * M_BLOCK + tl.arange(0, M_BLOCK)).to(tl.int64)
    n = within // height * N_BLOCK + tl.arange(0, N_BLOCK)
    k = tl.arange(0, K_BLOCK)
    a = A + (m if WHOLE else m % rows)[:, None] * K + k[None, :]
    # B is (K, N) in the backward pass, and (N, K) in the forward pass.
    b = B + (k[:, None] * N + n[None, :] if BACKWARD else n[None, :] * K + k[:, None])
    total = tl.zeros((M_BLOCK, N_BLOCK), tl.float32)
    for _ in range(0, K // K_BLOCK):
        total = tl.dot(tl.load(a), tl.load(b), total)
        a += K_BLOCK
        b += K_BLOCK * N if BACKWARD else K_BLOCK
    place = m[:, None] * N + n[None, :]
    inside = (m < rows)[:, None]
    if BACKWARD:
        x = tl.load(PRODUCT + place, None if WHOLE else inside).to(tl.float32)
        out = total * tl.where(x > 0, 2 * x, 2 * SLOPE * SLOPE * x)
    else:
        rounded = total.to(tl.bfloat16)
        tl.store(PRODUCT + place, rounded, None if WHOLE else inside)
        x = rounded.to(tl.float32)
        leaky = tl.where(x > 0, x, SLOPE * x)
        out = leaky * leaky
    tl.store(OUT + place, out.to(tl.bfloat16), None if WHOLE else inside)


def _multiply(
    a: Tensor, b: Tensor, product: Tensor, out: Tensor, slope: float, backward: bool
) -> None:
    columns, inner = product.size(-1), a.size(-1)
    rows = a.numel() // inner
    m_block, n_block = 128, _N_BLOCK // 2 if backward else _N_BLOCK
    _product_kernel[(triton.cdiv(rows, m_block) * (columns // n_block),)](
        a, b, product, out, rows, columns, inner, slope, backward, rows % m_block == 0,
        m_block, n_block, _K_BLOCK, 8, num_warps=8, num_stages=3,
    )  # fmt: skip


@torch.library.custom_op("paramgolf::squared_product", mutates_args=())
def _squared_product(x: Tensor, weight: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    product = x.new_empty(*x.shape[:-1], weight.size(0))
    squared = torch.empty_like(product)
    _multiply(x, weight, product, squared, slope, backward=False)
    return product, squared


@_squared_product.register_fake
def _(x: Tensor, weight: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    product = x.new_empty(*x.shape[:-1], weight.size(0))
    return product, torch.empty_like(product)


@torch.library.custom_op("paramgolf::squared_product_backward", mutates_args=())
def _squared_product_backward(
    grad: Tensor, weight: Tensor, product: Tensor, slope: float
) -> Tensor:
    out = torch.empty_like(product)
    _multiply(grad, weight, product, out, slope, backward=True)
    return out


@_squared_product_backward.register_fake
def _(grad: Tensor, weight: Tensor, product: Tensor, slope: float) -> Tensor:
    return torch.empty_like(product)


class SquaredMlp(torch.autograd.Function):
    """leaky_relu(x @ up.T)^2 @ down.T, and its first factor."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up_FD: Tensor, down_DF: Tensor, slope: float
    ) -> tuple[Tensor, Tensor]:
        """Return the output (..., D) and the squares (..., F), bfloat16 as all arguments."""
        product, squared = _squared_product(x, up_FD, slope)
        ctx.save_for_backward(x, up_FD, down_DF, product, squared)
        ctx.slope = slope
        ctx.mark_non_differentiable(squared)
        return squared @ down_DF.T, squared

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x and of both matrices."""
        x, up_FD, down_DF, product, squared = ctx.saved_tensors
        grad = grad.contiguous()
        grad_product = _squared_product_backward(grad, down_DF, product, ctx.slope)
        flat = [t.flatten(0, -2) for t in (grad, squared, grad_product, x)]
        return grad_product @ up_FD, flat[2].T @ flat[3], flat[0].T @ flat[1], None


# Queries, keys and values.


@triton.jit
def _normed_and_turned(
    X, COS, SIN, row, token, turns, inside, T, D: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr
):
    """Return x / rms, 1 / rms, the same rotated, and cosines and signed sines, of rows of X."""
    i = tl.arange(0, D)
    partner = tl.where(i < R, i + R, tl.where(i < 2 * R, i - R, i))
    mask = inside[:, None]
    x = tl.load(X + row[:, None] * D + i[None, :], mask, 0.0).to(tl.float32)
    y = tl.load(X + row[:, None] * D + partner[None, :], mask, 0.0).to(tl.float32)
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
def _place(
    QUERY, KEY, VALUE, token, head, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Return the address of each head, in one of three tensors."""
    query = QUERY + (token * H + head) * D
    key = KEY + (token * K + head - H) * D
    value = VALUE + (token * K + head - H - K) * D
    return tl.where(head < H, query, tl.where(head < H + K, key, value))


@triton.jit
def _heads_kernel(
    X, COS, SIN, GAIN, QUERY, KEY, VALUE, rows, T,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    token, head = row // (H + 2 * K), row % (H + 2 * K)
    is_query, is_value = head < H, head >= H + K
    i = tl.arange(0, D)[None, :]
    _, _, turned, _, _ = _normed_and_turned(
        X, COS, SIN, row, token, inside & (head < H + K), inside, T, D, R, EPS
    )
    gain = tl.load(GAIN + head, inside & is_query, 1.0).to(tl.bfloat16).to(tl.float32)
    out = (turned.to(tl.bfloat16).to(tl.float32) * gain[:, None]).to(tl.bfloat16)
    straight = tl.load(X + row[:, None] * D + i, (inside & is_value)[:, None], 0.0)
    out = tl.where(is_value[:, None], straight, out)
    tl.store(_place(QUERY, KEY, VALUE, token, head, H, K, D)[:, None] + i, out, inside[:, None])


@triton.jit
def _heads_backward_kernel(
    X, COS, SIN, GAIN, GRAD_QUERY, GRAD_KEY, GRAD_VALUE, OUT, GRAD_GAIN, rows, T,
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
    of_partner = tl.load(source + partner, inside[:, None], 0.0).to(tl.float32)
    tl.store(GRAD_GAIN + row, tl.sum(given * turned, 1), inside)
    gain = tl.load(GAIN + head, inside & (head < H), 1.0).to(tl.bfloat16).to(tl.float32)
    grad = (given * cos - of_partner * sin) * gain[:, None]  # turned back
    grad = scale * (grad - x * (tl.sum(grad * x, 1) / D)[:, None])
    out = tl.where((head < H + K)[:, None], grad, given).to(tl.bfloat16)
    tl.store(OUT + row[:, None] * D + i, out, inside[:, None])


@torch.library.custom_op("paramgolf::heads", mutates_args=())
def _heads(
    x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, num_keys: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = _empty_heads(x, num_keys)
    T, heads, size = x.shape[1:]
    rows = x.numel() // size
    _heads_kernel[(triton.cdiv(rows, _ROWS),)](
        x, cos, sin, gain, query, key, value, rows, T,
        heads - 2 * num_keys, num_keys, size, cos.size(1), eps, _ROWS,
    )  # fmt: skip
    return query, key, value


def _empty_heads(x: Tensor, num_keys: int) -> tuple[Tensor, Tensor, Tensor]:
    B, T, heads, size = x.shape
    sizes = heads - 2 * num_keys, num_keys, num_keys
    query, key, value = (x.new_empty(B, T, number, size) for number in sizes)
    return query, key, value


@_heads.register_fake
def _(
    x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, num_keys: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_heads(x, num_keys)


@torch.library.custom_op("paramgolf::heads_backward", mutates_args=())
def _heads_backward(
    x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor,
    grad_query: Tensor, grad_key: Tensor, grad_value: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = torch.empty_like(x)
    grad_gain = x.new_empty(x.shape[:-1], dtype=torch.float32)
    rows = grad_gain.numel()
    _heads_backward_kernel[(triton.cdiv(rows, _ROWS),)](
        x, cos, sin, gain, grad_query, grad_key, grad_value, out, grad_gain, rows, x.size(1),
        grad_query.size(2), grad_key.size(2), x.size(3), cos.size(1), eps, _ROWS,
    )  # fmt: skip
    return out, grad_gain


@_heads_backward.register_fake
def _(
    x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor,
    grad_query: Tensor, grad_key: Tensor, grad_value: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)


class Heads(torch.autograd.Function):
    """Queries and keys normalised, rotated and (queries) scaled by a gain; values as they are."""

    @staticmethod
    def forward(
        ctx: Any, x_BTSd: Tensor, cos: Tensor, sin: Tensor, gain_H: Tensor, keys: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, T, H, d), k and v (B, T, K, d) from all heads, for K = `keys`."""
        ctx.save_for_backward(x_BTSd, cos, sin, gain_H)
        ctx.eps = eps
        return _heads(x_BTSd, cos, sin, gain_H, keys, eps)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None, Tensor, None, None]:
        """Return the gradients of all heads and of the gain."""
        q, k, v = (grad.contiguous() for grad in grads)
        grad, grad_gain = _heads_backward(*ctx.saved_tensors, q, k, v, ctx.eps)
        return grad, None, None, grad_gain[:, :, : q.size(2)].sum((0, 1)), None, None


# XSA.


@triton.jit
def _xsa_kernel(Y, VALUE, OUT, rows, GROUP: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (token, key and value head)
    inside = (row < rows)[:, None]
    i = tl.arange(0, D)[None, :]
    value = tl.load(VALUE + row[:, None] * D + i, inside, 0.0).to(tl.float32)
    direction = value / tl.maximum(tl.sqrt(tl.sum(value * value, 1)), 1e-12)[:, None]
    for head in tl.static_range(GROUP):
        place = (row[:, None] * GROUP + head) * D + i
        y = tl.load(Y + place, inside, 0.0).to(tl.float32)
        out = y - tl.sum(y * direction, 1)[:, None] * direction
        tl.store(OUT + place, out.to(tl.bfloat16), inside)


@triton.jit
def _xsa_backward_kernel(
    Y, VALUE, GRAD, OUT, OUT_VALUE, rows,
    GROUP: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None]
    i = tl.arange(0, D)[None, :]
    value = tl.load(VALUE + row[:, None] * D + i, inside, 0.0).to(tl.float32)
    scale = 1 / tl.maximum(tl.sqrt(tl.sum(value * value, 1)), 1e-12)[:, None]
    direction = value * scale
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


@torch.library.custom_op("paramgolf::xsa", mutates_args=())
def _xsa(y: Tensor, value: Tensor) -> Tensor:
    out = torch.empty_like(y)
    size = value.size(-1)
    rows = value.numel() // size
    _xsa_kernel[(triton.cdiv(rows, _ROWS),)](
        y, value, out, rows, y.size(2) // value.size(2), size, _ROWS
    )
    return out


@_xsa.register_fake
def _(y: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(y)


@torch.library.custom_op("paramgolf::xsa_backward", mutates_args=())
def _xsa_backward(y: Tensor, value: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    out, out_value = torch.empty_like(y), torch.empty_like(value)
    size = value.size(-1)
    rows = value.numel() // size
    _xsa_backward_kernel[(triton.cdiv(rows, _ROWS),)](
        y, value, grad, out, out_value, rows, y.size(2) // value.size(2), size, _ROWS
    )
    return out, out_value


@_xsa_backward.register_fake
def _(y: Tensor, value: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y), torch.empty_like(value)


class Xsa(torch.autograd.Function):
    """`model.attention.exclude_self_value`."""

    @staticmethod
    def forward(ctx: Any, y_BTHd: Tensor, v_BTKd: Tensor) -> Tensor:
        """Return what is left of y, (B, T, H, d)."""
        ctx.save_for_backward(y_BTHd, v_BTKd)
        return _xsa(y_BTHd, v_BTKd)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of y and v."""
        return _xsa_backward(*ctx.saved_tensors, grad.contiguous())
