"""SIGINT and SIGTERM: when they take effect, and how the program ends because of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from paramgolf.errors import UserError

RESUMABLE = 75
"""Exit code of a run that was preempted (EX_TEMPFAIL of sysexits.h): resume it, and it goes on."""


class Preempted(UserError):
    """SIGTERM, as a scheduler sends it; nothing finished is lost."""

    exit_code = RESUMABLE


_received: list[int] = []
_deferring = False


def install() -> None:
    """Take over both signals; for a program, not for library use."""

    def take(number: int, _: Any) -> None:
        # Remembered, too: native code may turn the exception into one of its own.
        _received.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if not _deferring:
            raise _preempted()

    signal.signal(signal.SIGINT, take)
    signal.signal(signal.SIGTERM, take)


def ignore() -> None:
    """From now on nothing interrupts: the program is ending."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def terminated() -> bool:
    """Whether SIGTERM has come."""
    return signal.SIGTERM in _received


@contextmanager
def deferred_termination() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM only makes the function that is given return True."""
    global _deferring
    _deferring = True
    try:
        yield terminated
    finally:
        _deferring = False


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message, one line, for what ended the program."""
    if signal.SIGINT in _received or isinstance(error, KeyboardInterrupt):
        return 130, "interrupted; `paramgolf run --resume DIR` goes on"
    if signal.SIGTERM in _received and not isinstance(error, UserError):
        error = _preempted()
    if isinstance(error, BrokenPipeError):  # `paramgolf ... | head`
        return 1, "standard output was closed"
    if isinstance(error, UserError):
        return error.exit_code, " ".join(str(error).split())
    message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    return 1, " ".join(message.split())


def _preempted() -> Preempted:
    return Preempted("stopped by SIGTERM; `paramgolf run --resume DIR` goes on")
