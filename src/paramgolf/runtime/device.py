"""Where a run computes: device, dtype, ranks, named random generators."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from paramgolf.errors import UserError
from paramgolf.runtime.ranks import Ranks

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Runtime:
    """The device of this process and how it computes there."""

    device: torch.device
    dtype: torch.dtype
    """Of activations; weights are kept in float32 (see `model.gpt`)."""
    compiled: bool
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def wants_gpu(device: Literal["auto", "cpu", "cuda"]) -> bool:
    """Whether to compute on a GPU.

    Raises:
        UserError: if CUDA is asked for and missing.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("device = 'cuda', but PyTorch sees no CUDA GPU; use --device cpu or auto")
    return device != "cpu" and has_gpu


def select_runtime(device: Literal["auto", "cpu", "cuda"], ranks: Ranks | None = None) -> Runtime:
    """CPUs compute eagerly in float32, GPUs compiled in bfloat16.

    Raises:
        UserError: if CUDA is asked for and missing.
    """
    ranks = ranks or Ranks()
    if not wants_gpu(device):
        _keep_freed_memory()
        return Runtime(torch.device("cpu"), torch.float32, compiled=False, ranks=ranks)
    # What `reproducible` asks for, and on Hopper PyTorch's own default; cuBLAS reads it once.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    gpu = torch.device("cuda", torch.cuda.current_device())
    return Runtime(gpu, torch.bfloat16, compiled=True, ranks=ranks)


def _keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next step, not hand it back to the kernel (glibc only).

    A step on a CPU frees and takes hundreds of megabytes; to have them given back and zeroed each
    time took a seventh of the training seconds of the recipe `tiny`.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc allows
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def reproducible() -> Iterator[None]:
    """Inside, equal calls give equal bits in every process on the same machine.

    Without it, cuDNN's attention and the gradient of an embedding are not that on a GPU. What a
    score is made of without learning does not need it: it has been equal to the last digit.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def named_seed(seed: int, name: str) -> int:
    """A 63-bit seed for one purpose, derived from the run's root seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one purpose, derived from the run's root seed."""
    return torch.Generator().manual_seed(named_seed(seed, name))
