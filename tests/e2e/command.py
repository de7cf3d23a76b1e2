"""The command `paramgolf` in processes of its own.

Importing PyTorch takes seconds, a command often none. `Cli` therefore keeps one process that has
imported everything; for every command it forks a child, which does what `python -m paramgolf` would
do, with arguments, streams, folder and exit status of its own. (It ends at `sys.exit`, without
taking the interpreter apart, which would last longer than most commands.) Run as a script, this
file is that one process.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import runpy
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
TIMEOUT = 300
"""Seconds; a command that takes longer hangs, on however busy a machine."""


class Result(NamedTuple):
    """How a command ended."""

    code: int
    """Exit status; minus the signal that killed it."""
    stdout: str
    stderr: str


def command(*arguments: str | Path) -> list[str]:
    """The command line of a fresh process."""
    return [sys.executable, "-m", "paramgolf", *map(str, arguments)]


def run(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Result:
    """Run a command in a fresh process, with variables of its own."""
    environment = ENVIRONMENT | (env or {})
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment, capture_output=True, timeout=TIMEOUT
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def start(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a command in a fresh process; its output is read with `communicate`."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> Result:
    """How a started command ends by itself."""
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    return Result(process.returncode, stdout.decode(), stderr.decode())


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for something that a started command does."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)


class Cli:
    """Runs commands in children of one warm process."""

    def __init__(self) -> None:
        """Start the warm process."""
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        max_file_bytes: int | None = None,
    ) -> Result:
        """Run a command; files can grow to `max_file_bytes`, as on a disk that fills up."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            request = {
                "arguments": list(map(str, arguments)),
                "cwd": str(cwd or folder),
                "max_file_bytes": max_file_bytes,
            }
            print(json.dumps(request), file=self._server.stdin, flush=True)
            return Result(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """End the warm process."""
        self._server.communicate()


def _serve() -> None:
    import torch._dynamo  # noqa: F401  (what optimizers import late)

    gc.freeze()  # what was imported is there to stay: children need not look for garbage in it
    for line in sys.stdin:
        pipes = [os.pipe() for _ in range(2)]
        pid = os.fork()
        if pid == 0:
            for number, (_, write_end) in enumerate(pipes, start=1):
                os.dup2(write_end, number)
            _become(json.loads(line))
            return
        for _, write_end in pipes:
            os.close(write_end)
        stdout, stderr = _read_to_the_end([read_end for read_end, _ in pipes])
        _, status = os.waitpid(pid, 0)
        result = Result(os.waitstatus_to_exitcode(status), stdout.decode(), stderr.decode())
        print(json.dumps(result._asdict()), flush=True)


def _become(request: dict[str, Any]) -> None:
    """Be the command from here to the end of the process."""
    signal.alarm(TIMEOUT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.closerange(3, 64)
    os.chdir(request["cwd"])
    if request["max_file_bytes"] is not None:
        most = request["max_file_bytes"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    sys.argv = ["paramgolf", *request["arguments"]]
    try:
        runpy.run_module("paramgolf", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))


def _read_to_the_end(pipes: list[int]) -> list[bytes]:
    """What comes out of pipes, whichever is written to first."""
    read = dict.fromkeys(pipes, b"")
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                part = os.read(key.fd, 1 << 16)
                read[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return list(read.values())


def one_line_error(result: Result, code: int = 1) -> str:
    """Check that a command failed as it should, and give its message."""
    assert result.code == code, result
    assert result.stderr.startswith("paramgolf: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.endswith("\n")
    assert not result.stderr.startswith("paramgolf: unexpected"), result.stderr
    return result.stderr


if __name__ == "__main__":
    _serve()
