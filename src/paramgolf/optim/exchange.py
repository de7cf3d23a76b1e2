"""Gradients summed over ranks while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paramgolf.model.gpt import GPT
from paramgolf.runtime.ranks import Ranks, wait


def buckets_of(model: GPT) -> list[list[nn.Parameter]]:
    """Parameters whose gradients travel together, in the order in which these are complete.

    A block's gradients are complete after its first visit, so late blocks come first; the tied
    embedding, used at both ends, comes last.
    """
    blocks = [list(block.parameters()) for block in reversed(model.block_list())]
    buckets = [*blocks, [model.skip_weight, model.skip_gate], [model.embedding]]
    # A model without skips has parameters of no numbers, which get no gradient.
    full = [[parameter for parameter in bucket if parameter.numel()] for bucket in buckets]
    return [bucket for bucket in full if bucket]


class GradientExchange:
    """Sums the gradients of all ranks, bucket by bucket, behind the backward pass."""

    def __init__(self, buckets: Sequence[Sequence[nn.Parameter]], ranks: Ranks) -> None:
        """Watch the gradients of all buckets; with one rank, do nothing at all."""
        self._buckets, self._ranks = buckets, ranks
        self._missing = [0] * len(buckets)
        self._flying: list[tuple[Tensor, dist.Work | None]] = []
        self._armed = False
        if ranks.size > 1:
            for number, bucket in enumerate(buckets):
                for parameter in bucket:
                    parameter.register_post_accumulate_grad_hook(partial(self._complete, number))

    def arm(self) -> None:
        """The next backward pass is the last of this step: send what it completes."""
        self._missing = [len(bucket) for bucket in self._buckets]
        self._flying = []
        self._armed = self._ranks.size > 1

    def _complete(self, number: int, _: Tensor) -> None:
        if not self._armed:
            return
        self._missing[number] -= 1
        # In one order on all ranks, whatever completes first on each.
        while len(self._flying) < len(self._buckets) and not self._missing[len(self._flying)]:
            bucket = self._buckets[len(self._flying)]
            flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
            self._flying.append((flat, self._ranks.start_sum_(flat)))

    def finish(self) -> None:
        """Wait for the sums and put them in the place of this rank's gradients."""
        if not self._armed:
            return
        self._armed = False
        if len(self._flying) < len(self._buckets):
            raise RuntimeError(f"no gradient for {sum(self._missing)} parameters")
        for bucket, (flat, work) in zip(self._buckets, self._flying, strict=True):
            wait(work)
            gradients = [_gradient(parameter) for parameter in bucket]
            sums = flat.split([gradient.numel() for gradient in gradients])
            views = [s.view_as(g) for s, g in zip(sums, gradients, strict=True)]
            torch._foreach_copy_(gradients, views)
        self._flying = []


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
