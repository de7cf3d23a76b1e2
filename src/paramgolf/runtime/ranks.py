"""The processes of one run, called ranks, and what they exchange.

`torchrun` starts the ranks; collectives on CPU tensors go through Gloo, on GPU tensors through
NCCL. With one process nothing here communicates.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from paramgolf.errors import UserError

_T = TypeVar("_T")
# Renamed in PyTorch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_JOIN_TIMEOUT = datetime.timedelta(minutes=10)
_CONTROL_TIMEOUT = datetime.timedelta(hours=6)
"""A lost rank is found by the watch, in seconds; this only has to outlast the longest serial work
of rank 0 (preparing a large text), for which the others wait."""


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run."""

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None
    """What the CPUs agree through; None: the default group."""

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def mine(self, items: Any) -> Any:
        """This rank's share of a sequence or of a tensor's rows: rank, rank + size, ..."""
        return items[self.rank :: self.size]

    def span(self, count: int) -> range:
        """This rank's share of 0 .. count - 1 in one piece; shares differ by at most 1."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over the ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_sum_(self, tensor: Tensor) -> dist.Work | None:
        """Start `sum_`; the sum is there after `wait()` on what this returns."""
        return dist.all_reduce(tensor, async_op=True) if self.size > 1 else None

    def start_gather(self, tensor: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Start to collect a tensor of the same shape from every rank, into (ranks, *shape)."""
        if self.size == 1:
            return tensor[None], None
        gathered = tensor.new_empty((self.size * tensor.size(0), *tensor.shape[1:]))
        work = _all_gather(gathered, tensor.contiguous(), async_op=True)
        return gathered.view(self.size, *tensor.shape), work

    def mean_in_order(self, tensor: Tensor) -> Tensor:
        """Mean over the ranks, added up in the order of the ranks: the same for any network."""
        if self.size == 1:
            return tensor
        gathered, work = self.start_gather(tensor)
        wait(work)
        total = gathered[0].clone()
        for other in gathered[1:]:
            total += other
        return total / self.size

    def agree(self, *values: float) -> list[float]:
        """Sums of a few numbers over all ranks, through the CPUs; the same everywhere."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def from_main(self, value: _T) -> _T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self.control, device=torch.device("cpu"))
        return box[0]

    def gather_to_main(self, value: _T) -> list[_T]:
        """The values of all ranks in their order, on rank 0; nothing elsewhere."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.gather_object(value, box if self.main else None, dst=0, group=self.control)
        return box if self.main else []

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.agree(0.0)


def wait(work: dist.Work | None) -> None:
    """Wait for a collective that was started, if one was (on a GPU: make its stream wait)."""
    if work is not None:
        work.wait()


def started_by_torchrun() -> bool:
    """Whether this process is one of several ranks."""
    told = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}
    return told <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def join(use_gpu: bool) -> Ranks:
    """Join the other ranks, as torchrun's environment says.

    Raises:
        UserError: if there are more ranks on this machine than GPUs.
    """
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if use_gpu:
        if local_size > torch.cuda.device_count():
            raise UserError(
                f"{local_size} ranks on a machine with {torch.cuda.device_count()} GPUs: start at "
                "most that many with --nproc-per-node"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_JOIN_TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=_JOIN_TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
    return Ranks(rank, size, control)  # pyright: ignore[reportArgumentType]
