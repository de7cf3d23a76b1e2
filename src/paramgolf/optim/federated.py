"""Federated averaging: every rank trains on its own chunks, then all weights are averaged.

McMahan et al. 2017 (https://arxiv.org/abs/1602.05629), with local AdamW moments as in PR #1735.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paramgolf.runtime.graphs import zero_state
from paramgolf.runtime.ranks import Ranks


class FederatedAdamW:
    """AdamW (betas 0.9 and 0.999, no weight decay) on this rank, and the average over ranks."""

    def __init__(
        self, parameters: Sequence[Tensor], grad_clip: float, ranks: Ranks | None = None
    ) -> None:
        """Take the trainable parameters, in the same order on every rank."""
        self._ranks = ranks or Ranks()
        self._parameters = list(parameters)
        self._grad_clip = grad_clip
        self._adamw = torch.optim.AdamW(
            self._parameters,
            lr=0.0,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            fused=True,
            capturable=self._parameters[0].is_cuda,
        )

    def reset(self) -> None:
        """Return to the initial state, in the same memory."""
        zero_state(self._adamw)

    def step(self, lr: float | Tensor) -> None:
        """Clip the gradients, update, drop the gradients."""
        torch.nn.utils.clip_grad_norm_(self._parameters, self._grad_clip, foreach=True)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    @torch.no_grad()
    def average_over_ranks(self) -> None:
        """Replace every weight by its mean over the ranks, in one exchange; moments stay local."""
        if self._ranks.size == 1:
            return
        flat = torch.cat([parameter.flatten() for parameter in self._parameters])
        flat = self._ranks.mean_in_order(flat)
        sizes = [parameter.numel() for parameter in self._parameters]
        for parameter, mean in zip(self._parameters, flat.split(sizes), strict=True):
            parameter.copy_(mean.view_as(parameter))
