"""The texts of a run, read on all cores, by processes that share the memory of this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.fingerprints import Sampling
from paramgolf.data.run_texts import Part, RunTexts, read_part
from paramgolf.errors import UserError

ALONE_TOKENS = 1 << 22
"""Texts of up to so many tokens are read by this process alone."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class AllCores(RunTexts):
    """`RunTexts`, read on all cores."""

    def read_all(
        self, tasks: Iterator[tuple[NDArray[np.uint16], Sampling]], tokens: int
    ) -> Iterator[Part]:
        """Yield `read_part` of all parts of a text of so many tokens, in their order."""
        return on_all_cores(read_part, tasks) if tokens > ALONE_TOKENS else map(read_part, tasks)


def on_all_cores(function: Callable[[_Task], _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
    """Yield `function(task)` for each task, in order; tasks are taken as results are.

    Threads of this process do not exist in the others, so `function` must not use PyTorch.

    Raises:
        UserError: if a process dies, which is most often for lack of memory.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux, where processes can be forked
    cores = len(affinity(0)) if affinity else 1
    if cores == 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(cores, multiprocessing.get_context("fork"), _start)
    waiting: deque[Future[_Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that read text was killed, perhaps for lack of memory: free some, or allow "
            f"fewer cores than {cores} (`taskset -c 0-7 ...`)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    """Let a process end with the one that started it, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
