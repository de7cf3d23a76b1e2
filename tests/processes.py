"""Functions run by several ranks on this machine's CPU."""

from __future__ import annotations

import datetime
import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from paramgolf.runtime.ranks import Ranks

_TIMEOUT = 300
"""Seconds; ranks that take longer hang, however busy the machine is."""
_PRELOADED = ["torch._dynamo", "paramgolf.pipeline.run", "tests.helpers"]
"""Imported once in the process from which all ranks are forked, so that they start at once."""


class Outcome(NamedTuple):
    """How a rank ended: what the function returned, or the error, which may be that it died."""

    result: Any
    error: str | None


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what `function(ranks, *arguments)` returns on each of `size` ranks joined by Gloo."""
    outcomes = outcomes_on_ranks(size, function, *arguments)
    for rank, (_, error) in enumerate(outcomes):
        assert error is None, f"rank {rank}:\n{error}"
    return [result for result, _ in outcomes]


def outcomes_on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Outcome]:
    """Like `on_ranks`; a rank may fail or die."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        processes = []
        for rank, (_, sender) in enumerate(pipes):
            call = (Ranks(rank, size), folder, sender, function, arguments)
            processes.append(context.Process(target=_one_rank, args=call))
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        try:
            return [_received(receiver) for receiver, _ in pipes]
        finally:
            for process in processes:
                process.join(10)
                process.kill()


def _received(receiver: Connection) -> Outcome:
    if not receiver.poll(_TIMEOUT):
        return Outcome(None, "timed out")
    try:
        return Outcome(*pickle.loads(receiver.recv_bytes()))
    except EOFError:
        return Outcome(None, "died")


def _one_rank(
    ranks: Ranks, folder: str, sender: Connection, function: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    try:
        if ranks.size > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/rendezvous",
                rank=ranks.rank,
                world_size=ranks.size,
                timeout=datetime.timedelta(seconds=_TIMEOUT),
            )
        _send(sender, function(ranks, *arguments), None)
        if ranks.size > 1:
            dist.destroy_process_group()
    except BaseException:
        _send(sender, None, traceback.format_exc())


def _send(sender: Connection, result: Any, error: str | None) -> None:
    """As bytes: `send` would leave tensors in shared memory, which dies with this process."""
    sender.send_bytes(pickle.dumps((result, error)))
