"""Names and shapes of a model's parameters, from its configuration alone."""

from __future__ import annotations

import torch

from paramgolf.config import ModelConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.roles import QUANTIZED_ROLES, role


def layout(config: ModelConfig) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """Return the shapes of all quantized matrices, and of all vectors, in the model's order."""
    with torch.device("meta"):
        model = GPT(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    matrices = {name: shape for name, shape in shapes.items() if role(name) in QUANTIZED_ROLES}
    return matrices, {name: shape for name, shape in shapes.items() if name not in matrices}
