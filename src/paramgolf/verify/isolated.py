"""Runs a code file in processes that can import no other `paramgolf`; see `scored_again`.

Started as a script, by `python -I`. It imports the libraries once, which takes seconds, from the
folders that the first line of standard input lists. Then it forks a child for every further line: a
JSON list of the folder to work in and of the arguments, whose first one is the code file. The
child's exit status is the line that it answers with; the child's standard error goes to the file
`errors` of its folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of prctl.h
_MAX_FILE_BYTES = 1 << 32
"""The losses of a text, and what compilers keep, are smaller."""

LIBRARIES = ("constriction", "numpy", "safetensors.torch", "sentencepiece", "torch")


class _Guard(MetaPathFinder):
    """Refuses every module of the package that finders before it do not know.

    The code file puts its own finder before all others.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Refuse a module of the package."""
        if fullname.partition(".")[0] == "paramgolf":
            raise ModuleNotFoundError(f"{fullname} is not in the code file", name=fullname)


def serve() -> None:
    """Run the jobs of standard input, one after the other."""
    _end_with_parent()
    sys.meta_path.insert(0, _Guard())
    sys.path += json.loads(sys.stdin.readline())
    for name in LIBRARIES:
        __import__(name)
    while line := sys.stdin.readline():
        folder, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            _become(folder, arguments)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is killed (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _become(folder: str, arguments: Sequence[str]) -> None:
    """Turn this process into one that runs the code file, and end."""
    status = 1
    try:
        _end_with_parent()
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
        nothing = os.open(os.devnull, os.O_RDWR)
        errors = os.open("errors", os.O_WRONLY | os.O_CREAT)
        for number, handle in enumerate((nothing, nothing, errors)):
            os.dup2(handle, number)
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        code = ended.code
        status = code if isinstance(code, int) else int(code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status & 0xFF)


if __name__ == "__main__":
    # The folder of this script must not be searched for modules, even without `-I`.
    sys.path = [name for name in sys.path if Path(name) != Path(__file__).parent]
    serve()
