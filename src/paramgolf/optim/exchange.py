"""Gradients summed over ranks while the backward pass is still running."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paramgolf.model.gpt import GPT
from paramgolf.runtime.ranks import Ranks, wait


def buckets_of(model: GPT) -> list[list[nn.Parameter]]:
    """Group the parameters whose gradients are sent together, in the order of their completion.

    A block's gradients are complete when the backward pass reaches its first visit, so late blocks
    come first; the tied embedding, used at both ends, comes last.
    """
    blocks = [list(block.parameters()) for block in reversed(model.block_list())]
    buckets = [*blocks, [model.skip_weight, model.skip_gate], [model.embedding]]
    # Without skips, their parameters are empty and get no gradient.
    full = [[parameter for parameter in bucket if parameter.numel()] for bucket in buckets]
    return [bucket for bucket in full if bucket]


class GradientExchange:
    """Sums the gradients of all ranks, bucket by bucket, during the backward pass."""

    def __init__(self, buckets: Sequence[Sequence[nn.Parameter]], ranks: Ranks) -> None:
        """Watch the gradients of all buckets; with one rank, do nothing."""
        self._buckets, self._ranks = buckets, ranks
        self._missing = [0] * len(buckets)
        self._sent: list[tuple[Tensor, dist.Work | None]] = []
        self._armed = False
        if ranks.size > 1:
            for number, bucket in enumerate(buckets):
                for parameter in bucket:
                    parameter.register_post_accumulate_grad_hook(partial(self._complete, number))

    def arm(self) -> None:
        """Send what the next backward pass completes: it is the last of this step."""
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent = []
        self._armed = self._ranks.size > 1

    def _complete(self, number: int, _: Tensor) -> None:
        if not self._armed:
            return
        self._missing[number] -= 1
        # In the same order on all ranks, whichever gradient is complete first.
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            bucket = self._buckets[len(self._sent)]
            flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
            self._sent.append((flat, self._ranks.start_sum_(flat)))

    def finish(self) -> None:
        """Wait for the sums and replace this rank's gradients by them."""
        if not self._armed:
            return
        self._armed = False
        if len(self._sent) < len(self._buckets):
            raise RuntimeError(f"no gradient for {sum(self._missing)} parameters")
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            wait(work)
            gradients = [_gradient(parameter) for parameter in bucket]
            sums = flat.split([gradient.numel() for gradient in gradients])
            views = [s.view_as(g) for s, g in zip(sums, gradients, strict=True)]
            torch._foreach_copy_(gradients, views)
        self._sent = []


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
