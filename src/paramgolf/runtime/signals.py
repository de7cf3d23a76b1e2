"""SIGINT (Ctrl-C) and SIGTERM: when they take effect, and how they end the program."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paramgolf.errors import UserError

RESUMABLE = 75
"""Exit code of a preempted run, which can be resumed (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Exit code after SIGINT, as shells report it."""


class Stopped(UserError):
    """The run was stopped by a signal; finished work is kept."""

    def __init__(self, when: str = "", resume: str = "") -> None:
        """Build the message.

        Args:
            when: the moment, e.g. " after step 3"; at its end, the files that were written.
            resume: how to resume; by default, what `resume_with` was told.
        """
        interrupted = signal.SIGINT in _received
        self.exit_code = INTERRUPTED if interrupted else RESUMABLE
        message = f"{'interrupted' if interrupted else 'stopped by SIGTERM'}{when}"
        super().__init__("; ".join(filter(None, (message, resume or _resume))))


_received: list[int] = []
_deferring = False
_program = "paramgolf run"
_resume = ""


def install(program: str = "", notify: Callable[[], None] = lambda: None) -> None:
    """Install handlers for both signals; for programs, not for library use.

    The first SIGINT acts like SIGTERM; the second ends the process at once.

    Args:
        program: the command whose option --resume resumes a run, if not `paramgolf run`.
        notify: called when the effect of a SIGINT is deferred.
    """
    global _program
    _program = program or _program

    def take(number: int, _: Any) -> None:
        # Recorded too, since native code may replace the exception by another one.
        _received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not _deferring:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            notify()

    signal.signal(signal.SIGINT, take)
    signal.signal(signal.SIGTERM, take)


def ignore() -> None:
    """Ignore both signals from now on, because the program is ending."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def resume_with(run: Path | None) -> None:
    """Set the run that messages say how to resume; None: there is nothing to resume."""
    global _resume
    _resume = f"resume it with `{_program} --resume {run}`" if run else ""


def received() -> bool:
    """Return whether one of the signals was received."""
    return bool(_received)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal was received, and defer its effect."""
    global _deferring
    _deferring = True
    try:
        yield received
    finally:
        _deferring = False


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and a one-line message for the error that ended the program.

    The message is empty if the user interrupted something that cannot be resumed, or if nobody
    reads standard output any more.
    """
    if isinstance(error, KeyboardInterrupt) or (_received and not isinstance(error, UserError)):
        error = Stopped()
        if error.exit_code == INTERRUPTED and not _resume:
            return INTERRUPTED, ""
    if isinstance(error, UserError):
        return error.exit_code, " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return 1, f"a file name is too long: {str(error.filename)[:60]}..."
    message = f"unexpected {type(error).__name__}: {error} (--debug shows the traceback)"
    return 1, " ".join(message.split())
