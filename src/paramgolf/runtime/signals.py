"""SIGINT and SIGTERM: when they take effect, and how they end the program."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from paramgolf.errors import UserError

RESUMABLE = 75
"""Exit code of a preempted run, which can be resumed (EX_TEMPFAIL of sysexits.h)."""


class Preempted(UserError):
    """The run was stopped by SIGTERM, which schedulers send; finished work is kept."""

    exit_code = RESUMABLE


_received: list[int] = []
_deferring = False


def install() -> None:
    """Install handlers for both signals; for programs, not for library use."""

    def take(number: int, _: Any) -> None:
        # Recorded too, since native code may replace the exception by another one.
        _received.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if not _deferring:
            raise _preempted()

    signal.signal(signal.SIGINT, take)
    signal.signal(signal.SIGTERM, take)


def ignore() -> None:
    """Ignore both signals from now on, because the program is ending."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def terminated() -> bool:
    """Return whether SIGTERM was received."""
    return signal.SIGTERM in _received


@contextmanager
def deferred_termination() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM was received, and defer its effect."""
    global _deferring
    _deferring = True
    try:
        yield terminated
    finally:
        _deferring = False


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and a one-line message for the error that ended the program."""
    if signal.SIGINT in _received or isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; resume it with `paramgolf run --resume DIR`"
    if signal.SIGTERM in _received and not isinstance(error, UserError):
        error = _preempted()
    if isinstance(error, BrokenPipeError):  # `paramgolf ... | head`
        return 1, "standard output was closed"
    if isinstance(error, UserError):
        return error.exit_code, " ".join(str(error).split())
    message = f"unexpected {type(error).__name__}: {error} (--debug shows the traceback)"
    return 1, " ".join(message.split())


def _preempted() -> Preempted:
    return Preempted("stopped by SIGTERM; resume it with `paramgolf run --resume DIR`")
