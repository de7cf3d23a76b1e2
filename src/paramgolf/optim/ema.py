"""The exponential moving average of all weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """average += share * (weight - average), in float32 or wider, at every step."""

    def __init__(self, model: nn.Module) -> None:
        """Start at the current weights of the model."""
        self._parameters = dict(model.named_parameters())
        self.average = {
            name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32)).clone()
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, share: float | Tensor) -> None:
        """Include the current weights; `share` is theirs in the average, a tensor on a GPU."""
        averages = list(self.average.values())
        weights = [
            parameter.detach().to(average.dtype)
            for parameter, average in zip(self._parameters.values(), averages, strict=True)
        ]
        steps = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(averages, steps)
