"""Causal attention, rotary positions and exclusive self-attention (XSA).

Shape suffixes: B batch, T time, S time with the past, H query heads, K key/value heads, d head
size, r rotated pairs.
"""

from __future__ import annotations

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


class Past:
    """The key/value cache: keys and values of all positions so far, for every visit to a block.

    Attributes:
        length: positions so far.
    """

    def __init__(self, capacity: int) -> None:
        """Create an empty cache; memory for `capacity` positions is allocated at first use."""
        self.length = 0
        self._capacity = capacity
        self._visit = 0
        self._kept: list[tuple[Tensor, Tensor]] = []

    def extended(self, k_BTKd: Tensor, v_BTKd: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of the next visit; return all, (B, length + T, K, d)."""
        if self._visit == len(self._kept):
            shape = k_BTKd.size(0), self._capacity, *k_BTKd.shape[2:]
            self._kept.append((k_BTKd.new_zeros(shape), v_BTKd.new_zeros(shape)))
        kept = self._kept[self._visit]
        self._visit += 1
        end = self.length + k_BTKd.size(1)
        for cache, new in zip(kept, (k_BTKd, v_BTKd), strict=True):
            cache[:, self.length : end] = new
        return kept[0][:, :end], kept[1][:, :end]

    def advance(self, positions: int) -> None:
        """Count positions that all visits have appended."""
        self.length += positions
        self._visit = 0


def causal_attention(q_BTHd: Tensor, k_BSKd: Tensor, v_BSKd: Tensor) -> Tensor:
    """Softmax attention with scale 1/sqrt(d), (B, T, H, d), in the dtype of the inputs.

    The T queries are those of the last of S positions: query i attends to keys 0 .. S - T + i.
    Query heads share key/value heads in consecutive groups of H / K. PyTorch picks the backend:
    on Hopper cuDNN, which reads grouped heads without repeating them. Only several queries after
    a past need a mask, which rules out the fastest backends.
    """
    T, S = q_BTHd.size(1), k_BSKd.size(1)
    mask_TS = None
    if 1 < T < S:
        mask_TS = torch.ones(T, S, dtype=torch.bool, device=q_BTHd.device).tril(S - T)
    y_BHTd = F.scaled_dot_product_attention(
        q_BTHd.transpose(1, 2),
        k_BSKd.transpose(1, 2),
        v_BSKd.transpose(1, 2),
        attn_mask=mask_TS,
        is_causal=T == S,
        enable_gqa=q_BTHd.size(2) != k_BSKd.size(2),
    )
    return y_BHTd.transpose(1, 2)


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
