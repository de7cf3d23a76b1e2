"""The command `paramgolf`: finds the function of a subcommand and turns errors into exit codes."""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from paramgolf.cli import live
from paramgolf.cli.common import as_options, printable, usage
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime import signals, startup  # noqa: F401 (startup records when it is imported)
from paramgolf.runtime.console import guard_output
from paramgolf.runtime.names import choose
from paramgolf.version import __version__

_COMMANDS = {
    "run": "run",
    "score": "artifacts",
    "compress": "artifacts",
    "decompress": "artifacts",
    "generate": "artifacts",
    "serve": "serve",
    "prove": "verify",
    "export": "publish",
    "audit": "verify",
    "verify": "verify",
    "bundle": "publish",
    "report": "report",
    "list": "listing",
    "seeds": "study",
    "compare": "study",
    "ablate": "study",
    "submission": "publish",
    "data": "data",
}
"""The module of every command; imported when needed. Commands parse their arguments before they
import what needs PyTorch, so that --help and mistakes do not wait for it."""
_RENAMED = {"record": "submission"}


def main() -> NoReturn:
    """Entry point of the command `paramgolf`."""
    arguments = list(map(_with_home, sys.argv[1:]))
    signals.install(notify=_announce_stop)
    guard_output()
    if sys.stderr is not None:
        faulthandler.enable()  # a shard that shrinks while it is mapped ends the process by SIGBUS
    try:
        try:
            _require_directory()
            _dispatch([word for word in arguments if word not in ("--debug", "--verbose")])
        finally:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = signals.explain(error)
        _exit(code, as_options(message) if isinstance(error, UserError) else message)
    _exit(0, "")


def _with_home(word: str) -> str:
    """Return an option with its path: shells replace a ~ only at the beginning of a word."""
    option, equals, value = word.partition("=~")
    if not equals or not option.startswith("--") or option == "--prompt":
        return word
    return f"{option}={os.path.expanduser('~' + value)}"


def _require_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current directory no longer exists: change to another") from error


def _exit(code: int, message: str) -> NoReturn:
    live.clear()
    signals.ignore()  # nothing is left to stop
    # Ranks that have not joined yet may fail on one machine alone, so one per machine prints.
    if message and os.environ.get("LOCAL_RANK", "0") == "0":
        print(printable(f"paramgolf: {message}", "\n\t"), file=sys.stderr)
    sys.exit(code)


def _announce_stop() -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0" and sys.stderr.isatty():
        print("\nparamgolf: finishing the current step; Ctrl-C again ends at once", file=sys.stderr)


def _dispatch(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
    elif arguments[0] == "--version":
        print(f"paramgolf {__version__}")
    elif arguments[0] == "--print-completion":
        from paramgolf.cli.completion import completion

        print(completion(" ".join(arguments[1:]), _COMMANDS))
    else:
        name = arguments[0]
        if name in _RENAMED:
            raise ConfigError(f"{name} was renamed: use `paramgolf {_RENAMED[name]}`")
        module = importlib.import_module(f"paramgolf.cli.{choose('command', name, _COMMANDS)}")
        getattr(module, name)(list(arguments[1:]))
