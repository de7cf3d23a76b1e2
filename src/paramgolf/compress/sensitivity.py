"""The cost of quantizing each matrix: the divergence of the model's predictions.

Shape suffixes: B batch, T time, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from paramgolf.model.gpt import GPT
from paramgolf.model.losses import softcapped
from paramgolf.model.order import LayerOrder

_CHUNK_TOKENS = 8192


@torch.no_grad()
def divergences(
    model: GPT,
    order: LayerOrder,
    tokens_BT: Tensor,
    replacements: Mapping[str, Tensor],
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Measure the Kullback-Leibler divergence from the model to itself with one matrix replaced.

    It has a hundredth of the noise of a difference in loss, in which random changes of the
    predictions count, for better on some tokens and for worse on others.

    Args:
        model: the model, on its device; unchanged afterwards.
        order: the layer order.
        tokens_BT: a batch of text, on the model's device.
        replacements: the other value of each matrix to measure, by name.
        progress: called with the number of matrices measured.

    Returns:
        Mean nats per token, by name.
    """
    softcap = model.config.logit_softcap
    hidden, embedding = model(tokens_BT, order).flatten(0, 1), model.embedding.clone()
    measured = {}
    for number, (name, value) in enumerate(replacements.items(), start=1):
        parameter = model.get_parameter(name)
        kept = parameter.clone()
        parameter.copy_(value)
        changed = model(tokens_BT, order).flatten(0, 1)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for before, after in zip(
            hidden.split(_CHUNK_TOKENS), changed.split(_CHUNK_TOKENS), strict=True
        ):
            expected = softcapped(before @ embedding.T, softcap).log_softmax(dim=-1)
            found = softcapped(after @ model.embedding.T, softcap).log_softmax(dim=-1)
            total += (expected.exp() * (expected - found)).sum(dtype=torch.float64)
        parameter.copy_(kept)
        measured[name] = float(total) / len(hidden)
        if progress is not None:
            progress(number)
    return measured
