# pyright: reportMissingImports=false, reportIndexIssue=false
"""Triton kernels of a block, for models that compute in bfloat16 on a GPU.

Each replaces several passes over the activations, which are limited by memory, by one: the squared
leaky ReLU moves into the matrix product before it (and its derivative into the one before that);
norm, rotation and gain of queries and keys are one pass, and so is XSA. They compute in float32,
and write bfloat16.

Shape suffixes as in `model.attention`; F hidden width of the MLP; S = H + 2K heads of queries,
keys and values together.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from paramgolf.config import ModelConfig

_ROWS = 16
"""(token, head) pairs of one program."""
_M_BLOCK, _N_BLOCK, _K_BLOCK = 128, 256, 64


def support(config: ModelConfig) -> bool:
    """Return whether the kernels can compute a model of this shape."""
    power_of_two = config.head_dim & (config.head_dim - 1) == 0
    hidden = config.width * config.mlp_ratio
    return power_of_two and config.width % _K_BLOCK == 0 and hidden % _N_BLOCK == 0


# The MLP: a matrix product whose result is squared, and the derivative of that.


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


@torch.library.custom_op("paramgolf::squared_product", mutates_args=())
def _squared_product(x: Tensor, weight: Tensor, slope: float) -> Tensor:
    squared = x.new_empty(*x.shape[:-1], weight.size(0))
    _multiply(x, weight, squared, squared, slope)
    return squared


@_squared_product.register_fake
def _(x: Tensor, weight: Tensor, slope: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))


@torch.library.custom_op("paramgolf::squared_product_backward", mutates_args=())
def _squared_product_backward(
    grad: Tensor, weight: Tensor, squared: Tensor, slope: float
) -> Tensor:
    out = torch.empty_like(squared)
    _multiply(grad, weight, squared, out, slope)
    return out


@_squared_product_backward.register_fake
def _(grad: Tensor, weight: Tensor, squared: Tensor, slope: float) -> Tensor:
    return torch.empty_like(squared)


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
        squared = _squared_product(x, up_FD, slope)
        ctx.save_for_backward(x, up_FD, down_DF, squared)
        ctx.slope = slope
        ctx.mark_non_differentiable(squared)
        return squared @ down_DF.T, squared

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x and of both matrices."""
        x, up_FD, down_DF, squared = ctx.saved_tensors
        grad = grad.contiguous()
        grad_product = _squared_product_backward(grad, down_DF, squared, ctx.slope)
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


@torch.library.custom_op("paramgolf::heads", mutates_args=())
def _heads(
    x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, num_keys: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = _empty_heads(x, num_keys)
    T, heads, size = x.shape[1:]
    rows = x.numel() // size
    _heads_kernel[(triton.cdiv(rows, _ROWS),)](
        x, cos, sin, gain, query, key, value, rows, T,
        heads - 2 * num_keys, num_keys, size, cos.size(1), eps, _ROWS, num_warps=2,
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
    grad_query: Tensor, grad_key: Tensor, grad_value: Tensor, grad_copy: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = torch.empty_like(x)
    grad_gain = x.new_empty(x.shape[:-1], dtype=torch.float32)
    rows = grad_gain.numel()
    _heads_backward_kernel[(triton.cdiv(rows, _ROWS),)](
        x, cos, sin, gain, grad_query, grad_key, grad_value, grad_copy, out, grad_gain, rows,
        x.size(1), grad_query.size(2), grad_key.size(2), x.size(3), cos.size(1), eps, _ROWS,
        num_warps=2,
    )  # fmt: skip
    return out, grad_gain


@_heads_backward.register_fake
def _(
    x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor,
    grad_query: Tensor, grad_key: Tensor, grad_value: Tensor, grad_copy: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)


class Heads(torch.autograd.Function):
    """Queries and keys normalised, rotated and (queries) scaled by a gain; values as they are."""

    @staticmethod
    def forward(
        ctx: Any, x_BTSd: Tensor, cos: Tensor, sin: Tensor, gain_H: Tensor, keys: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q (B, T, H, d), k, v and v again (B, T, K, d) from all heads, for K = `keys`.

        Attention and XSA each take one v, so that the backward pass adds both gradients here.
        """
        ctx.save_for_backward(x_BTSd, cos, sin, gain_H)
        ctx.eps = eps
        q, k, v = _heads(x_BTSd, cos, sin, gain_H, keys, eps)
        return q, k, v, v.view_as(v)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None, Tensor, None, None]:
        """Return the gradients of all heads and of the gain."""
        of_heads = [grad.contiguous() for grad in grads]
        grad, grad_gain = _heads_backward(*ctx.saved_tensors, *of_heads, ctx.eps)
        return grad, None, None, grad_gain[:, :, : grads[0].size(2)].sum((0, 1)), None, None


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
