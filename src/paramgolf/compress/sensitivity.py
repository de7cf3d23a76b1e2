"""The cost of quantizing each matrix: the divergence of the model's predictions.

Shape suffixes: B batch, T time, N tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder
from paramgolf.model.roles import EMBEDDING

_CHUNK_TOKENS = 8192


@torch.no_grad()
def divergences(
    model: GPT,
    order: LayerOrder,
    tokens_BT: Tensor,
    replacements: Mapping[str, Tensor],
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, float]:
    """Measure the Kullback-Leibler divergence from the model to itself with one matrix replaced.

    It has a hundredth of the noise of a difference in loss, in which random changes of the
    predictions count, for better on some tokens and for worse on others.

    Args:
        model: the model, on its device, not accelerated; unchanged afterwards.
        order: the layer order.
        tokens_BT: a batch of text, on the model's device.
        replacements: the other value of each matrix to measure, by name.
        progress: called with the number of matrices measured.

    Returns:
        Mean nats per token, by name.
    """
    measured = {}
    visits = order.encoder + order.decoder
    blocks = model.blocks
    model.blocks = replay = _Replay(blocks)
    replay.known = replay.outputs = []
    expected = list(_log_probabilities(model, model(tokens_BT, order)))
    for number, (name, value) in enumerate(replacements.items(), start=1):
        replay.first = 0 if name == EMBEDDING else visits.index(int(name.split(".")[1]))
        replay.outputs = []
        parameter = model.get_parameter(name)
        kept = parameter.clone()
        parameter.copy_(value)
        found = _log_probabilities(model, model(tokens_BT, order))
        total = torch.zeros((), dtype=torch.float64, device=kept.device)
        for before_NV, after_NV in zip(expected, found, strict=True):
            total += (before_NV.exp() * (before_NV - after_NV)).sum(dtype=torch.float64)
        parameter.copy_(kept)
        measured[name] = float(total) / tokens_BT.numel()
        progress(number)
    model.blocks = blocks
    return measured


def _log_probabilities(model: GPT, hidden_BTD: Tensor) -> Iterator[Tensor]:
    """Yield the logarithms of all tokens' probabilities, (N, V), for some positions at a time."""
    for part_ND in hidden_BTD.flatten(0, 1).split(_CHUNK_TOKENS):
        yield model.logits(part_ND).log_softmax(dim=-1)


class _Replay(nn.ModuleList):
    """The blocks of a model, which pass over visits before a change: their outputs are known."""

    known: list[Tensor]
    """Outputs of all visits."""
    first = 0
    """The first visit that is computed."""
    outputs: list[Tensor]
    """Outputs of the visits so far."""

    def __getitem__(self, layer: Any) -> Any:
        return partial(self._visit, super().__getitem__(layer))

    def _visit(self, block: nn.Module, *inputs: Any, **options: Any) -> Tensor:
        visit = len(self.outputs)
        self.outputs.append(self.known[visit] if visit < self.first else block(*inputs, **options))
        return self.outputs[-1]
