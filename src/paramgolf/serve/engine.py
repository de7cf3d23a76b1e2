"""One thread that works with the model, and the queue of jobs before it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from typing import Any, NoReturn

MAX_WAITING = 8
"""Jobs that wait for the one that is being done; more are refused."""


class BusyError(Exception):
    """The queue is full."""


class Job:
    """Work that yields results one by one.

    Attributes:
        results: what the work yielded; in the end its exception, or `Job.END`.
        cancelled: set it when nobody wants the rest.
    """

    END = object()

    def __init__(self, work: Iterable[Any]) -> None:
        """Take work that has not begun; it is done by `Engine.work`."""
        self._work = work
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.cancelled = threading.Event()

    def do(self) -> None:
        """Do the work until it is done, fails or is cancelled."""
        if self.cancelled.is_set():
            return
        try:
            for result in self._work:
                self.results.put(result)
                if self.cancelled.is_set():
                    return
        except Exception as error:
            self.results.put(error)
        else:
            self.results.put(Job.END)


class Engine:
    """Does jobs in the order in which they were submitted, one at a time."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Job] = queue.Queue(MAX_WAITING)

    def submit(self, work: Iterable[Any]) -> Job:
        """Queue some work.

        Raises:
            BusyError: if MAX_WAITING jobs are waiting.
        """
        job = Job(work)
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise BusyError from None
        return job

    def work(self) -> NoReturn:
        """Do all jobs, without end."""
        while True:
            self._waiting.get().do()
