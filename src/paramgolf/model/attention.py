"""Causal attention, rotary positions and exclusive self-attention (XSA).

Shape suffixes: B batch, T time, S time with the past, H query heads, K key/value heads, d head
size, r rotated pairs.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_tables(
    length: int, dims: int, base: float, train_len: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotation angles, each (length, dims // 2).

    Beyond the training length the base is scaled by (length / train_len)^(dims / (dims - 2)), so
    that the slowest rotation keeps its range (NTK-aware scaling). The tables are float32, or
    float64 where the model computes in float64.
    """
    if length > train_len:
        base = base * (length / train_len) ** (dims / (dims - 2))
    pair = torch.arange(dims // 2, dtype=torch.float64)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), base ** (-2 * pair / dims))
    table_dtype = torch.promote_types(dtype, torch.float32)
    return angles.cos().to(device, table_dtype), angles.sin().to(device, table_dtype)


def rotate(x_BTHd: Tensor, cos_Tr: Tensor, sin_Tr: Tensor) -> Tensor:
    """Rotate the pairs (i, i + r) of the first 2r dimensions of every head; same shape, dtype."""
    pairs = cos_Tr.size(-1)
    first, second, rest = x_BTHd.split([pairs, pairs, x_BTHd.size(-1) - 2 * pairs], dim=-1)
    cos, sin = cos_Tr[:, None, :], sin_Tr[:, None, :]
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([rotated.to(x_BTHd.dtype), rest], dim=-1)


def causal_attention(
    q_BTHd: Tensor, k_BSKd: Tensor, v_BSKd: Tensor, seen_TS: Tensor | None = None
) -> Tensor:
    """Softmax attention with scale 1/sqrt(d), (B, T, H, d), in the dtype of the inputs.

    The T queries are those of the last of S positions: query i attends to keys 0 .. S - T + i, or
    to those that are True in row i of `seen_TS`. Query heads share key/value heads in consecutive
    groups of G = H / K. While training, FlashAttention-4 computes it if `flash_attention` has it;
    else PyTorch picks the backend: on Hopper cuDNN, which reads grouped heads without repeating
    them. With a mask only the slow backend does; so the heads of a group become further queries of
    their one key/value head.
    """
    T, H = q_BTHd.shape[1:3]
    S, K = k_BSKd.shape[1:3]
    trains = q_BTHd.requires_grad and q_BTHd.dtype is torch.bfloat16 and q_BTHd.is_cuda
    if trains and T == S and seen_TS is None and not torch.are_deterministic_algorithms_enabled():
        flash = flash_attention(q_BTHd.size(3))
        if flash is not None:
            return flash(q_BTHd, k_BSKd, v_BSKd, causal=True)[0]
    k_BKSd, v_BKSd = k_BSKd.transpose(1, 2), v_BSKd.transpose(1, 2)
    if seen_TS is None and 1 < T < S:
        seen_TS = torch.ones(T, S, dtype=torch.bool, device=q_BTHd.device).tril(S - T)
    if seen_TS is None:
        y_BHTd = F.scaled_dot_product_attention(
            q_BTHd.transpose(1, 2), k_BKSd, v_BKSd, is_causal=T == S, enable_gqa=H != K
        )
        return y_BHTd.transpose(1, 2)
    q_BKNd = q_BTHd.unflatten(2, (K, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # N = G * T
    y_BKNd = F.scaled_dot_product_attention(q_BKNd, k_BKSd, v_BKSd, seen_TS.repeat(H // K, 1))
    return y_BKNd.unflatten(2, (-1, T)).flatten(1, 2).transpose(1, 2)


@functools.cache
def flash_attention(head_dim: int) -> Any:
    """Return FlashAttention-4's function if its package is there and pays, else None.

    It does on Hopper, head size 64: 1.65 ms a backward pass become 1.40, and forward passes stay as
    they are (docs/experiments/gpu-steps.md). Elsewhere it has not been measured.
    """
    if torch.cuda.get_device_capability()[0] != 9 or head_dim != 64:
        return None
    try:
        from flash_attn.cute import flash_attn_func  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    warnings.filterwarnings("ignore", "Argument aux_data", UserWarning)  # of its compiler
    return flash_attn_func


def exclude_self_value(y_BTHd: Tensor, v_BTKd: Tensor) -> Tensor:
    """XSA: remove from each head's output its projection on the position's own value vector.

    The residual stream already carries the position's own information; attention is left to add
    that of the others (effect in all layers: -0.005 BPB, frontier of the challenge).
    """
    B, T, H, d = y_BTHd.shape
    K = v_BTKd.size(2)
    y = y_BTHd.reshape(B, T, K, H // K, d)
    direction = F.normalize(v_BTKd, dim=-1).unsqueeze(3)
    return (y - (y * direction).sum(-1, keepdim=True) * direction).reshape(B, T, H, d)
