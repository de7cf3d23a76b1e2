"""Federated averaging: every rank learns from its own chunks, then all weights are averaged.

McMahan et al. 2017 (https://arxiv.org/abs/1602.05629), with local AdamW moments as in PR #1735.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")


def chunks_of_rank(chunks: Sequence[_T], rank: int, world_size: int) -> Iterator[_T]:
    """Chunks rank, rank + world_size, ...: interleaved, so that ranks see all of the text."""
    return iter(chunks[rank::world_size])


class FederatedAdamW:
    """AdamW (betas 0.9 and 0.999, no weight decay) on one rank, and the average over ranks."""

    def __init__(self, parameters: Sequence[Tensor], grad_clip: float) -> None:
        """Take the trainable parameters, in the same order on every rank."""
        self._parameters = list(parameters)
        self._grad_clip = grad_clip
        self._adamw = torch.optim.AdamW(
            self._parameters, lr=0.0, betas=(0.9, 0.999), weight_decay=0.0, fused=True
        )

    def step(self, lr: float) -> None:
        """Clip the gradients, update, drop the gradients."""
        torch.nn.utils.clip_grad_norm_(self._parameters, self._grad_clip, foreach=True)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    @torch.no_grad()
    def average_over_ranks(self) -> None:
        """Replace every weight by its mean over the ranks, in one flattened all-reduce.

        Moments stay local. Without a process group there is one rank and nothing to do.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        flat = torch.cat([parameter.flatten() for parameter in self._parameters])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        sizes = [parameter.numel() for parameter in self._parameters]
        for parameter, mean in zip(self._parameters, flat.split(sizes), strict=True):
            parameter.copy_(mean.view_as(parameter))
