"""Triton kernels for models that compute in bfloat16 on a GPU.

Each replaces several passes over the activations, which are limited by memory, by one. They
compute in float32, and write bfloat16. `model.gpt` has the same in plain PyTorch, and imports a
module of this package where it uses it, since Triton comes with PyTorch for GPUs only.
"""

from paramgolf.config import ModelConfig


def support(config: ModelConfig) -> bool:
    """Return whether the kernels can compute a model of this shape."""
    power_of_two = config.head_dim & (config.head_dim - 1) == 0
    hidden = config.width * config.mlp_ratio
    return power_of_two and config.width % 64 == 0 and hidden % 256 == 0  # blocks of `mlp`
