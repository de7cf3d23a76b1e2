"""Parameters that one kernel updates together: in one block of memory, as their gradients are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Bank:
    """Moves parameters into one tensor; they and their gradients become views.

    Attributes:
        flat: all weights, 1-D, with their gradients. These exist from the beginning and are never
            dropped: `zero_grad` clears them.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """Take parameters of one dtype and device."""
        self.flat = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
        self.flat.grad = torch.zeros_like(self.flat)
        sizes = [parameter.numel() for parameter in parameters]
        weights, gradients = self.flat.detach().split(sizes), self.flat.grad.split(sizes)
        for parameter, weight, gradient in zip(parameters, weights, gradients, strict=True):
            parameter.data = weight.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)

    @property
    def gradients(self) -> Tensor:
        """The gradients of all weights, 1-D."""
        assert self.flat.grad is not None
        return self.flat.grad

    def zero_grad(self) -> None:
        """Clear all gradients."""
        self.gradients.zero_()
