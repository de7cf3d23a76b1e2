"""CUDA graphs: a recorded sequence of kernels, which the GPU repeats without waiting for Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@functools.cache
def recording_stream() -> torch.cuda.Stream:
    """Return the stream of all recordings."""
    return torch.cuda.Stream()


@functools.cache
def _memory_pool() -> Any:
    """Return the memory that all recordings share: no two run at the same time."""
    return torch.cuda.graph_pool_handle()


@contextmanager
def on_recording_stream() -> Iterator[None]:
    """Launch the kernels of the block there, between those before and after the block.

    A tensor's gradients are accumulated on the stream of the first backward pass, and a recording
    must not depend on the default stream: so passes before a recording belong here, too.
    """
    if not torch.cuda.is_available():
        yield
        return
    stream = recording_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


class Recorded:
    """A function of tensors, recorded once and repeated on new values of its arguments.

    The function must launch the same kernels on the same memory at every call, and must not wait
    for the device.
    """

    @torch.no_grad()
    def __init__(
        self,
        function: Callable[..., Tensor],
        *examples: Tensor,
        state: Sequence[Tensor] = (),
    ) -> None:
        """Call the function once, to compile what it needs, and record a second call.

        Args:
            function: what to record.
            examples: arguments, on the device; later ones have the same shapes and dtypes.
            state: tensors that the function changes; they get their values back after the call.
        """
        self._arguments = [example.clone() for example in examples]
        self._graph = torch.cuda.CUDAGraph()
        kept = [tensor.clone() for tensor in state]
        with on_recording_stream():
            function(*self._arguments)
        for tensor, value in zip(state, kept, strict=True):
            tensor.copy_(value)
        with torch.cuda.graph(self._graph, pool=_memory_pool(), stream=recording_stream()):
            self._result = function(*self._arguments)

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return the function's result for these arguments, in new memory."""
        for kept, given in zip(self._arguments, arguments, strict=True):
            kept.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result.clone()


def zero_state(optimizer: torch.optim.Optimizer) -> None:
    """Return an optimizer to its state before the first step, in the memory that it has now."""
    for values in optimizer.state.values():
        for tensor in values.values():
            tensor.zero_()
