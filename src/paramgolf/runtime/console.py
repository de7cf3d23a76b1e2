"""Console output of a run: lines, tables, and progress with the remaining time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.table import Table

_SECONDS_BETWEEN_LINES = 3.0


def duration(seconds: float) -> str:
    """Format seconds for people: "8 s", "2:05"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Reporter:
    """Prints to a stream, or nowhere: on ranks other than 0, and in library use."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Print to `stream`; None: print nothing."""
        self._stream = stream
        self.status: Callable[[], str] = lambda: ""
        """Returns the end of every progress line: the current budget and what is spent of it."""

    def line(self, text: str) -> None:
        """Print one line."""
        if self._stream is not None:
            print(text, file=self._stream, flush=True)

    def text(self, text: str) -> None:
        """Print a piece of text immediately and unchanged."""
        if self._stream is not None:
            print(text, end="", file=self._stream, flush=True)

    def table(self, table: Table) -> None:
        """Print a table."""
        if self._stream is not None:
            from rich.console import Console

            width = None if self._stream.isatty() else 100
            Console(file=self._stream, width=width, highlight=False).print(table)

    def progress(self, name: str, total: float = 0, unit: str = "") -> Progress:
        """Start the progress of `name`, which ends at `total` (or the total passed to `update`)."""
        return Progress(self, name, total, unit)


class Progress:
    """Prints a line every few seconds: done, total, details, remaining time."""

    def __init__(self, reporter: Reporter, name: str, total: float, unit: str) -> None:
        self._reporter = reporter
        self._name, self._total, self._unit = name, total, unit
        self._start = self._last = time.monotonic()
        self._first_done: float | None = None

    def due(self) -> bool:
        """Return whether `update` would print now, so that costly details can be skipped."""
        return time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES

    def update(self, done: float, total: float | None = None, details: str = "") -> None:
        """Report that `done` of the total is done; print only when a line is due.

        The remaining time follows from the rate since the first call, so it does not count the work
        that was done before an interruption.
        """
        now = time.monotonic()
        if total is not None:
            self._total = total
        if self._first_done is None:
            self._first_done, self._start = done, now
        if not self.due():
            return
        self._last = now
        fresh = done - self._first_done
        left = (self._total - done) * (now - self._start) / fresh if fresh > 0 else None
        amount = f"{done:,.0f}/{self._total:,.0f}{' ' + self._unit if self._unit else ''}"
        parts = [f"{self._name:<9}", amount, details, f"{duration(left)} left" if left else ""]
        parts.append(self._reporter.status())
        self._reporter.line("  " + "  ".join(part for part in parts if part))


def is_main_rank() -> bool:
    """Return whether this is rank 0, the one that prints; valid before the ranks have joined."""
    return os.environ.get("RANK", "0") == "0"


def standard_output() -> Reporter:
    """Return a reporter on standard output; on ranks other than 0, it prints nothing."""
    return Reporter(sys.stdout if is_main_rank() else None)
