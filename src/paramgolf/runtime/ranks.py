"""The processes of one run, called ranks, and the collectives through which they exchange values.

`torchrun` starts the ranks. Collectives use Gloo for CPU tensors and NCCL for GPU tensors; with one
process, nothing communicates.

Every collective has a limit: so many seconds after the first rank has entered it, all ranks must
have. `runtime.watch` enforces it and names the rank that is missing.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from paramgolf.errors import UserError

_T = TypeVar("_T")
# Renamed in PyTorch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

PARALLEL_SECONDS = 600.0
"""Limit of most collectives: every rank does the same amount of work before it."""
SERIAL_SECONDS = 3600.0
"""Limit where rank 0 works alone before the collective: it codes weights or writes files."""
PREPARATION_SECONDS = 6 * 3600.0
"""Limit where rank 0 prepares the text, or copies that of another run, before the collective."""

# PyTorch's own limits, which do not name the missing rank, come after those above.
_JOIN_TIMEOUT = datetime.timedelta(seconds=1.5 * PARALLEL_SECONDS)
_CONTROL_TIMEOUT = datetime.timedelta(seconds=1.5 * PREPARATION_SECONDS)


class Arrival(NamedTuple):
    """The last collective that a rank has entered."""

    number: int = 0
    """Counted from 1. All ranks enter the same collectives in the same order."""
    name: str = ""
    limit_seconds: float = 0.0
    moment: float = 0.0
    """On the monotonic clock of the process that keeps this."""


class Arrivals:
    """Where this rank is among the collectives; the watch reads it from another thread."""

    def __init__(self) -> None:
        """Start before the first collective."""
        self.last = Arrival()

    def enter(self, name: str, limit_seconds: float | None = None) -> None:
        """Note that this rank enters the next collective; the limit is PARALLEL_SECONDS if None."""
        limit = PARALLEL_SECONDS if limit_seconds is None else limit_seconds
        self.last = Arrival(self.last.number + 1, name, limit, time.monotonic())


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run."""

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None
    """The group for values that are not tensors, always on CPUs; None: the default group."""
    arrivals: Arrivals = field(default_factory=Arrivals, compare=False, repr=False)

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def mine(self, items: Any) -> Any:
        """Return this rank's share of a sequence or a tensor's rows: rank, rank + size, ..."""
        return items[self.rank :: self.size]

    def span(self, count: int) -> range:
        """Return this rank's contiguous share of 0 .. count - 1; shares differ by at most 1."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over the ranks."""
        if self.size > 1:
            self.arrivals.enter("sum")
            dist.all_reduce(tensor)
        return tensor

    def start_sum_(self, tensor: Tensor) -> dist.Work | None:
        """Start `sum_`; the tensor is the sum after `wait` on the returned work."""
        if self.size == 1:
            return None
        self.arrivals.enter("sum")
        return dist.all_reduce(tensor, async_op=True)

    def start_gather(self, tensor: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Start to collect a tensor of the same shape from every rank, into (ranks, *shape)."""
        if self.size == 1:
            return tensor[None], None
        self.arrivals.enter("gather")
        gathered = tensor.new_empty((self.size * tensor.size(0), *tensor.shape[1:]))
        work = _all_gather(gathered, tensor.contiguous(), async_op=True)
        return gathered.view(self.size, *tensor.shape), work

    def mean_in_order(self, tensor: Tensor) -> Tensor:
        """Return the mean over ranks, added in the order of ranks: the same on any network."""
        if self.size == 1:
            return tensor
        gathered, work = self.start_gather(tensor)
        wait(work)
        total = gathered[0].clone()
        for other in gathered[1:]:
            total += other
        return total / self.size

    def agree(self, *values: float) -> list[float]:
        """Return the sums of a few numbers over all ranks, the same on every rank."""
        if self.size == 1:
            return list(values)
        self.arrivals.enter("agreement")
        return self._sums(values)

    def _sums(self, values: Sequence[float]) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def from_main(self, value: _T, limit_seconds: float | None = None) -> _T:
        """Return rank 0's value, on every rank; for the limit see `Arrivals.enter`."""
        if self.size == 1:
            return value
        self.arrivals.enter("broadcast from rank 0", limit_seconds)
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self.control, device=torch.device("cpu"))
        return box[0]

    def gather_to_main(self, value: _T, limit_seconds: float | None = None) -> list[_T]:
        """Return the values of all ranks, in order, on rank 0, and an empty list elsewhere."""
        if self.size == 1:
            return [value]
        self.arrivals.enter("gather to rank 0", limit_seconds)
        box: list[Any] = [None] * self.size
        dist.gather_object(value, box if self.main else None, dst=0, group=self.control)
        return box if self.main else []

    def barrier(self, limit_seconds: float | None = None) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            self.arrivals.enter("barrier", limit_seconds)
            self._sums([0.0])


def wait(work: dist.Work | None) -> None:
    """Wait for a started collective, if there is one (on a GPU: make its stream wait)."""
    if work is not None:
        work.wait()


def started_by_torchrun() -> bool:
    """Return whether this process is one of several ranks."""
    variables = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}
    return variables <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def join(use_gpu: bool) -> Ranks:
    """Join the other ranks, which torchrun's environment variables describe.

    Raises:
        UserError: if this machine has more ranks than GPUs, or the other ranks do not join.
    """
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    device = None
    if use_gpu:
        if local_size > torch.cuda.device_count():
            raise UserError(
                f"{local_size} ranks on a machine with {torch.cuda.device_count()} GPUs: start at "
                "most that many with --nproc-per-node"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
    try:
        dist.init_process_group(backend, timeout=_JOIN_TIMEOUT, device_id=device)
        control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
    except dist.DistError as error:
        raise UserError(
            f"rank {rank} could not join the other ranks within {_JOIN_TIMEOUT}: {error}"
        ) from error
    return Ranks(rank, size, control)  # pyright: ignore[reportArgumentType]
