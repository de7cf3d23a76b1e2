"""Triton kernels for models that compute in bfloat16 on a GPU.

Each replaces several passes over the activations, which are limited by memory, by one. They
compute in float32, and write bfloat16. `model.gpt` has the same in plain PyTorch.
"""

from paramgolf.config import ModelConfig
from paramgolf.model.kernels.heads import Heads, Xsa
from paramgolf.model.kernels.loss import WeightedLoss, nats
from paramgolf.model.kernels.mlp import HIDDEN_WIDTHS, WIDTHS, SquaredMlp
from paramgolf.model.kernels.stream import Enter, Join, Share, Sum

__all__ = [
    "Enter", "Heads", "Join", "Share", "SquaredMlp", "Sum", "WeightedLoss", "Xsa", "nats",
    "support",
]  # fmt: skip


def support(config: ModelConfig) -> bool:
    """Return whether the kernels can compute a model of this shape."""
    power_of_two = config.head_dim & (config.head_dim - 1) == 0
    hidden = config.width * config.mlp_ratio
    return power_of_two and config.width % WIDTHS == 0 and hidden % HIDDEN_WIDTHS == 0
