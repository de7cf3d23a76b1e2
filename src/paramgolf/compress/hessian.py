"""Calibration: H = sum of x x^T over all inputs x of each quantized matrix.

Shape suffixes: B batch, T time, C columns (inputs of a matrix).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder
from paramgolf.model.roles import EMBEDDING, BlockInputs


@torch.no_grad()
def collect_hessians(
    model: GPT,
    order: LayerOrder,
    batches: Iterable[Tensor],
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Tensor]:
    """Sum the Hessians of all matrices over batches of tokens (B, T) on the model's device.

    Returns:
        (C, C) float32 or wider, by input (`input_of`). Query, key and value share one; looped
        blocks sum over all their visits. The embedding's input is the final stream, which it
        multiplies as the output head.
    """
    hessians: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.size(-1))
        if rows.dtype is torch.bfloat16 and rows.is_cuda:
            gram = torch.mm(rows.T, rows, out_dtype=torch.float32)
        else:
            gram = (rows.T @ rows).to(torch.promote_types(rows.dtype, torch.float32))
        if name in hessians:
            hessians[name] += gram
        else:
            hessians[name] = gram

    def observe(layer: int, inputs: BlockInputs) -> None:
        for name, x in inputs._asdict().items():
            add(f"blocks.{layer}.{name}", x)

    for number, tokens_BT in enumerate(batches, start=1):
        add(EMBEDDING, model(tokens_BT, order, observe))
        progress(number)
    return hessians
