"""GPTQ with SDClip of all matrices of a model, in batches and shared out over ranks."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from paramgolf.compress.artifact import Quantized
from paramgolf.compress.clip import row_scales
from paramgolf.compress.gptq import factor_hessians, solve
from paramgolf.compress.hessian import EMBEDDING, input_of
from paramgolf.config import PackConfig
from paramgolf.distributed import Ranks


def precision(name: str, config: PackConfig) -> tuple[int, float]:
    """Bits and clip of a matrix."""
    if name == EMBEDDING:
        return config.embedding_bits, config.embedding_clip
    return config.matrix_bits, config.matrix_clip


def quantize(
    matrices: dict[str, Tensor],
    hessians: dict[str, Tensor],
    config: PackConfig,
    ranks: Ranks | None = None,
) -> tuple[dict[str, Quantized], dict[str, float]]:
    """GPTQ with SDClip of all matrices, those of one shape and precision in one batch.

    Of several ranks, each takes every W-th matrix of a batch.

    Returns:
        Integers and scales on the CPU, and the damping that each Hessian took, by name in the order
        given; of all matrices on rank 0, of none elsewhere.
    """
    ranks = ranks or Ranks()
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, matrix in matrices.items():
        groups[matrix.shape, precision(name, config)].append(name)
    quantized: dict[str, Quantized] = {}
    dampings: dict[str, float] = {}
    for (_, (bits, clip)), group in groups.items():
        names = ranks.mine(group)
        if not names:
            continue
        stacked = torch.stack([matrices[name] for name in names])
        factor = factor_hessians(
            torch.stack([hessians[input_of(name)] for name in names]), config.damping
        )
        scales = row_scales(stacked, bits, clip)
        integers = solve(stacked, factor, scales, bits)
        for name, q, s, damping in zip(
            names, integers, scales, factor.damping_M.tolist(), strict=True
        ):
            quantized[name] = Quantized(q.cpu(), s.cpu())
            dampings[name] = damping
    for theirs, their_dampings in ranks.gather_to_main((quantized, dampings)):
        quantized, dampings = quantized | theirs, dampings | their_dampings
    if not ranks.main:
        return {}, {}
    return {name: quantized[name] for name in matrices}, dampings
