"""Training over a slow link: two groups of two ranks on a CPU, with a simulated link between them.

    OMP_NUM_THREADS=1 python scripts/network_delay.py

Gloo carries every exchange as usual. In addition, an exchange ends no earlier than one link between
the groups would let it: exchanges follow each other on the link, each takes `latency` and its bytes
over `bandwidth`. An all-reduce of n bytes carries n each way, a gather what the two ranks of a
group have. Prints the median step beside two bounds (docs/ranks.md, "Scale on paper"): with all
gradients hidden behind the backward pass but the last bucket, and with nothing hidden.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from paramgolf.optim.exchange import buckets_of
from paramgolf.optim.trainer import StepPlan, Trainer
from paramgolf.recipes import RECIPES
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.ranks import Ranks

RANKS, GROUP, STEPS = 4, 2, 18
LINKS = [(0.0, math.inf), (0.02, math.inf), (0.0, 10e6), (0.0, 5e6), (0.02, 5e6)]
"""Seconds, bytes per second."""


@dataclass
class Link:
    """The link between the two groups."""

    latency: float
    bandwidth: float
    free: float = 0.0
    """When the last exchange on it ends."""
    seconds: list[float] = field(default_factory=list)
    """Of every exchange of this step."""

    def take(self, size: int) -> float:
        """Return when an exchange of so many bytes ends that starts now."""
        seconds = self.latency + size / self.bandwidth
        self.seconds.append(seconds)
        self.free = max(self.free, time.perf_counter()) + seconds
        return self.free


class SlowWork:
    """An exchange that ends when both Gloo and the link have finished."""

    def __init__(self, work: Any, end: float) -> None:
        self._work, self._end = work, end

    def wait(self) -> None:
        """Wait for both."""
        self._work.wait()
        time.sleep(max(0.0, self._end - time.perf_counter()))


@dataclass(frozen=True)
class SlowRanks(Ranks):
    """Ranks in two groups, with a link between them."""

    link: Link = field(default_factory=lambda: Link(*LINKS[0]))

    def sum_(self, tensor: Tensor) -> Tensor:
        """See `Ranks`."""
        self.start_sum_(tensor).wait()
        return tensor

    def start_sum_(self, tensor: Tensor) -> Any:
        """See `Ranks`."""
        size = tensor.numel() * tensor.element_size()
        return SlowWork(super().start_sum_(tensor), self.link.take(size))

    def start_gather(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """See `Ranks`."""
        size = GROUP * tensor.numel() * tensor.element_size()
        gathered, work = super().start_gather(tensor)
        return gathered, SlowWork(work, self.link.take(size))


def measure(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    recipe = RECIPES["tiny"][1]
    train = dataclasses.replace(recipe.train, batch_tokens=1024, micro_batch_tokens=1024)
    config = dataclasses.replace(recipe, train=train, device="cpu")
    link = Link(*LINKS[0])
    trainer = Trainer(config, select_runtime("cpu", SlowRanks(rank, RANKS, link=link)))
    count = len(buckets_of(trainer.model))
    shape = (len(trainer.share_of_batch), config.model.seq_len + 1)
    sequences = torch.randint(config.model.vocab_size, shape, dtype=torch.int32)
    base = 0.0
    if rank == 0:
        parameters = sum(p.numel() for p in trainer.model.parameters())
        print(f"{parameters:,} parameters, {RANKS} ranks, {os.cpu_count()} cores\n")
        print("| latency | bandwidth | step | gradients hidden | nothing hidden |")
        print("|---:|---:|---:|---:|---:|")
    for link.latency, link.bandwidth in LINKS:
        spent: list[float] = []
        for _ in range(STEPS):
            dist.barrier()
            link.seconds.clear()
            began = time.perf_counter()
            trainer.train_step(sequences, StepPlan(True, 0.1, 0.9))
            spent.append(time.perf_counter() - began)
        step = statistics.median(spent[2:])
        base = base or step
        # The buckets of gradients, the embedding last; then the loss, and Muon's updates.
        low, high = base + sum(link.seconds[count - 1 :]), base + sum(link.seconds)
        if rank == 0:
            print(
                f"| {link.latency * 1e3:.0f} ms | {link.bandwidth / 1e6:.0f} MB/s | "
                f"{step * 1e3:.0f} ms | {low * 1e3:.0f} ms | {high * 1e3:.0f} ms |",
                flush=True,
            )
    dist.destroy_process_group()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (folder,), RANKS)


if __name__ == "__main__":
    main()
