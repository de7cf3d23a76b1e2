"""Runs the command `paramgolf` in other processes.

Importing PyTorch takes seconds, a command often none. `Cli` therefore keeps one process that has
imported everything. For every command it forks a child, which does what `python -m paramgolf` would
do, with its own arguments, streams, working directory and exit status. (The child ends at
`sys.exit` without finalizing the interpreter, which would take longer than most commands.) This
file, run as a script, is that one process.
"""

from __future__ import annotations

import gc
import importlib
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
"""Seconds; a command that takes longer hangs, however busy the machine is."""
_PRELOADED = [
    "torch._dynamo",  # which optimizers import late
    "matplotlib.figure",
    "scipy.stats",
    *(f"paramgolf.cli.{name}" for name in ("artifacts", "data", "publish", "report", "study")),
    "paramgolf.codefile.build",
    "paramgolf.pipeline.session",
    "paramgolf.study.ablate",
    "paramgolf.verify.audit",
]


class Result(NamedTuple):
    """How a command ended."""

    code: int
    """Exit status; if a signal ended the command, minus its number."""
    stdout: str
    stderr: str


def command(*arguments: str | Path, patch: str = "") -> list[str]:
    """Return the command line of a fresh process, which first executes the code `patch`."""
    start = ["-c", f"{patch}\nfrom paramgolf.cli.main import main\nmain()"]
    return [sys.executable, *(start if patch else ["-m", "paramgolf"]), *map(str, arguments)]


def run(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Result:
    """Run a command in a fresh process, with additional environment variables."""
    environment = ENVIRONMENT | (env or {})
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment, capture_output=True, timeout=TIMEOUT
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def start(
    *arguments: str | Path, cwd: Path | None = None, patch: str = ""
) -> subprocess.Popen[bytes]:
    """Start a command in a fresh process, after the code `patch`; `finish` reads its output."""
    return subprocess.Popen(
        command(*arguments, patch=patch),
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> Result:
    """Wait until a started command ends."""
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    return Result(process.returncode, stdout.decode(), stderr.decode())


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a started command by SIGKILL."""
    process.kill()
    process.communicate()


def killed_while_writing(number: int) -> str:
    """Return a patch: after `number` files, SIGKILL comes before the next gets its final name."""
    return f"""
import os, signal
fsync, left = os.fsync, {number}
def killing(handle):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    fsync(handle)
os.fsync = killing
"""


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
        patch: str = "",
    ) -> Result:
        """Run a command.

        Args:
            arguments: those after `paramgolf`.
            cwd: working directory; by default an empty one.
            max_file_bytes: the size that files can have, as if the disk were full beyond it.
            patch: code that is executed first, to replace functions in the command's process.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            request = {
                "arguments": list(map(str, arguments)),
                "cwd": str(cwd or folder),
                "max_file_bytes": max_file_bytes,
                "patch": patch,
            }
            print(json.dumps(request), file=self._server.stdin, flush=True)
            return Result(**json.loads(self._server.stdout.readline()))

    def output(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Run a command that must succeed without a word on standard error; return its output."""
        result = self(*arguments, cwd=cwd)
        assert (result.code, result.stderr) == (0, ""), result.stderr
        return result.stdout

    def error(self, *arguments: str | Path, cwd: Path | None = None, code: int = 1) -> str:
        """Run a command that must fail with one line on standard error; return the line."""
        return one_line_error(self(*arguments, cwd=cwd), code)

    def close(self) -> None:
        """End the warm process."""
        self._server.communicate()


def _serve() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    from paramgolf.codefile.build import stripped_sources

    stripped_sources()  # which is cached: children need not strip the sources again
    gc.freeze()  # imported objects live forever: children need not look for garbage among them
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
    """Turn this process into the requested command."""
    signal.alarm(TIMEOUT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.closerange(3, 64)
    os.chdir(request["cwd"])
    if request["max_file_bytes"] is not None:
        limit = request["max_file_bytes"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["paramgolf", *request["arguments"]]
    try:
        exec(request["patch"], {})
        runpy.run_module("paramgolf", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))


def _read_to_the_end(pipes: list[int]) -> list[bytes]:
    """Return the whole content of pipes, whichever is written to first."""
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
    """Check that a command failed with one line on standard error, and return the line."""
    assert result.code == code, result
    assert result.stderr.startswith("paramgolf: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.endswith("\n")
    assert not result.stderr.startswith("paramgolf: unexpected"), result.stderr
    return result.stderr


if __name__ == "__main__":
    _serve()
