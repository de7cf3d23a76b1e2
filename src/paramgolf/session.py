"""One program's stay on its device and among its ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch.distributed as dist

from paramgolf import distributed
from paramgolf.runtime import Runtime, select_runtime, wants_gpu
from paramgolf.watch import Watch


class Session(NamedTuple):
    """Where to compute, and where to log."""

    runtime: Runtime
    log_to: Callable[[Path], None]
    """Takes a run's directory: errors of every rank are written there from now on."""


@contextmanager
def session(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Session]:
    """Join the other ranks, if torchrun started several; an error in the block ends them all.

    Raises:
        UserError: if the device is not there.
    """
    if not distributed.started_by_torchrun():
        yield Session(select_runtime(device), lambda _: None)
        return
    ranks = distributed.join(wants_gpu(device))
    watch = Watch(ranks)
    try:
        yield Session(select_runtime(device, ranks), watch.log_to)
        ranks.barrier()
    except BaseException as error:
        watch.end(error)
    watch.close()
    dist.destroy_process_group()
