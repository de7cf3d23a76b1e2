"""Console output of a run: lines, tables, and progress with the remaining time."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from paramgolf.errors import UserError

if TYPE_CHECKING:
    from paramgolf.config import RunConfig
    from paramgolf.runtime.rundir import RunDir

COLUMNS = 79
"""Maximum length of a line of progress: that of a terminal of 80 columns."""


def duration(seconds: float) -> str:
    """Format seconds for people: "8 s", "2:05"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Reporter:
    """Prints to a stream, or nowhere: on ranks other than 0, and in library use."""

    seconds_between = 30.0
    """The least time between two reports of progress."""
    verbose = False
    """Whether details are printed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Print to `stream`; None: print nothing."""
        self._stream = stream
        self._last = time.monotonic()
        self.status: Callable[[], str] = lambda: ""
        """Returns the end of every progress line: the current budget and what is spent of it."""

    def line(self, text: str) -> None:
        """Print one line."""
        self.text(text + "\n")

    def detail(self, text: str) -> None:
        """Print one line if details are wanted."""
        if self.verbose:
            self.line(text)

    def text(self, text: str) -> None:
        """Print a piece of text immediately and unchanged."""
        if self._stream is not None:
            print(text, end="", file=self._stream, flush=True)

    def stage_started(self, name: str, config: RunConfig, run: RunDir) -> None:
        """Begin a stage of a run."""
        self._last = time.monotonic()

    def stage_finished(self, name: str, result: dict[str, Any], seconds: float) -> None:
        """Print one line on a finished stage."""
        scores = [
            f"{key} {score['bpb']:.4f} BPB" for key, score in result.get("scores", {}).items()
        ]
        self.line("  ".join([f"{name:<9}", duration(seconds), *scores]))

    def progress(self, name: str, total: float = 0, unit: str = "") -> Progress:
        """Start the progress of `name`, which ends at `total` (or the total passed to `update`)."""
        return Progress(self, name, total, unit)

    def show(self, progress: Progress) -> None:
        """Print a line on the progress, without what is too long for a terminal."""
        line = f"  {progress.name:<9}"
        for part in (*progress.parts(), self.status()):
            if part and len(line) + len(part) + 2 <= COLUMNS:
                line += "  " + part
        self.line(line)

    def report(self, progress: Progress) -> None:
        """Show the progress if a report is due."""
        if time.monotonic() - self._last >= self.seconds_between:
            self.show(progress)
            self._last = time.monotonic()


class Progress:
    """How much of something is done, and the remaining time."""

    def __init__(self, reporter: Reporter, name: str, total: float, unit: str) -> None:
        self._reporter = reporter
        self.name, self.total, self.unit = name, total, unit
        self.done, self.details, self.rate = 0.0, "", 0.0
        self._start = time.monotonic()
        self._first_done: float | None = None

    def update(
        self, done: float, total: float | None = None, details: str = "", rate: float = 0.0
    ) -> None:
        """Report that `done` of the total is done.

        Args:
            done: in the unit of the progress.
            total: the new total; None: as before.
            details: what else to show, e.g. the loss.
            rate: tokens per second, if known.
        """
        if total is not None:
            self.total = total
        if self._first_done is None:
            self._first_done, self._start = done, time.monotonic()
        self.done, self.details, self.rate = done, details, rate
        self._reporter.report(self)

    def seconds_left(self) -> float | None:
        """Return the remaining time, if known.

        It follows from the rate since the first update, so it does not count the work that was
        done before an interruption.
        """
        fresh = self.done - (self._first_done or 0)
        passed = time.monotonic() - self._start
        return (self.total - self.done) * passed / fresh if fresh > 0 else None

    def parts(self) -> list[str]:
        """Return amount, details, rate and remaining time for people."""
        left = self.seconds_left()
        return [
            f"{self.done:,.0f}/{self.total:,.0f} {self.unit}".rstrip(),
            self.details,
            f"{self.rate:,.0f} tokens/s" if self.rate else "",
            f"{duration(left)} left" if left else "",
        ]


def is_main_rank() -> bool:
    """Return whether this is rank 0, the one that prints; valid before the ranks have joined."""
    return os.environ.get("RANK", "0") == "0"


def standard_output() -> Reporter:
    """Return a reporter on standard output; on ranks other than 0, it prints nothing."""
    return Reporter(sys.stdout if is_main_rank() else None)


class _StandardOutput(io.FileIO):
    """Fails once; what is printed afterwards, also when the interpreter ends, is dropped."""

    _failed = False

    def write(self, content: Any) -> int | None:
        if self._failed:
            return len(content)
        try:
            return super().write(content)
        except OSError as error:
            self._failed = True
            quiet = isinstance(error, BrokenPipeError)  # `paramgolf ... | head`
            raise UserError(
                "" if quiet else f"cannot write to standard output: {error.strerror}"
            ) from error


def guard_output() -> None:
    """Make standard output fail with a UserError, without a message if nobody reads it any more.

    The program must flush it before it ends. Ranks other than 0, and a program whose standard
    output is closed, print nothing. A character that the terminal's encoding lacks is printed as an
    escape sequence.
    """
    if sys.stdout is None or not is_main_rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return
    old, raw = sys.stdout, _StandardOutput(sys.stdout.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), old.encoding, "backslashreplace", line_buffering=old.isatty()
    )
