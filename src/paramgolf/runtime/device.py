"""The device and dtype of a run's computations, and its named random generators."""

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
    """The device of this process, and how it computes on it."""

    device: torch.device
    dtype: torch.dtype
    """The dtype of activations; weights are float32 (see `model.gpt`)."""
    accelerated: bool
    """Whether models use the kernels of `model.kernels`, and steps are recorded."""
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has finished all work."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def wants_gpu(device: Literal["auto", "cpu", "cuda"]) -> bool:
    """Return whether to compute on a GPU.

    Raises:
        UserError: if CUDA is requested but not available.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError("device = 'cuda', but PyTorch sees no CUDA GPU; use --device cpu or auto")
    return device != "cpu" and has_gpu


def select_runtime(device: Literal["auto", "cpu", "cuda"], ranks: Ranks | None = None) -> Runtime:
    """Select the device: a CPU computes in float32, a GPU in bfloat16 with kernels.

    Raises:
        UserError: if CUDA is requested but not available.
    """
    ranks = ranks or Ranks()
    if not wants_gpu(device):
        _keep_freed_memory()
        return Runtime(torch.device("cpu"), torch.float32, accelerated=False, ranks=ranks)
    # `reproducible` needs it; on Hopper it is PyTorch's default. cuBLAS reads it only once.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    gpu = torch.device("cuda", torch.cuda.current_device())
    return Runtime(gpu, torch.bfloat16, accelerated=True, ranks=ranks)


@contextmanager
def threads_of(count: int | None) -> Iterator[None]:
    """Compute with this many threads within the block; None: with as many as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Make malloc keep freed memory for the next step instead of returning it to the kernel.

    A step on a CPU allocates and frees hundreds of megabytes. Returning them, and having them
    zeroed again, took a seventh of the training seconds of the recipe `tiny`. (glibc only.)
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # glibc's maximum
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def reproducible() -> Iterator[None]:
    """Within the block, equal calls return equal bits in every process on the same machine.

    On a GPU, cuDNN's attention and the gradient of an embedding need this. Scoring without learning
    does not: its results have been equal to the last digit.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    # By default it also fills all new memory, once more than needed.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def named_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for one purpose, derived from the run's seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def named_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator for one purpose, derived from the run's seed."""
    return torch.Generator().manual_seed(named_seed(seed, name))
