"""Where a run computes: device, dtype, ranks, named random generators."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Literal

import torch

from paramgolf.errors import UserError


@dataclass(frozen=True)
class Runtime:
    """The device of this process and how it computes there."""

    device: torch.device
    dtype: torch.dtype
    """Of activations; weights are kept in float32 (see `model.gpt`)."""
    compiled: bool

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def select_runtime(device: Literal["auto", "cpu", "cuda"]) -> Runtime:
    """CPUs compute eagerly in float32, GPUs compiled in bfloat16.

    Raises:
        UserError: if CUDA is asked for and missing, or if several ranks were started.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "this version runs one process: start it with `paramgolf run`, without torchrun"
        )
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("device = 'cuda', but PyTorch sees no CUDA GPU; use --device cpu or auto")
    if device == "cpu" or not has_gpu:
        return Runtime(torch.device("cpu"), torch.float32, compiled=False)
    return Runtime(torch.device("cuda", torch.cuda.current_device()), torch.bfloat16, compiled=True)


def named_seed(seed: int, name: str) -> int:
    """A 63-bit seed for one purpose, derived from the run's root seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one purpose, derived from the run's root seed."""
    return torch.Generator().manual_seed(named_seed(seed, name))
