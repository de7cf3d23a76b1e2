"""The exponential moving average of all weights."""

from __future__ import annotations

import torch
from torch import nn


class WeightAverage:
    """average = decay * average + (1 - decay) * weight, in float32 or wider, at every step."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the current weights of the model."""
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self.average = {
            name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32)).clone()
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Include the current weights."""
        averages = list(self.average.values())
        weights = [
            parameter.detach().to(average.dtype)
            for parameter, average in zip(self._parameters.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)
