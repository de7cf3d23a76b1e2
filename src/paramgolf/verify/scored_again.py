"""Scoring by the code that counts: `train_gpt.py score`, alone with model.bin and tokenizer."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.shards import write_shard
from paramgolf.errors import UserError
from paramgolf.runtime.files import open_file, read_file
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify import isolated

Losses = NDArray[np.float64]

_MAX_ERROR_CHARS = 300
_MAX_SECONDS = 4 * 3600
"""For one text, whatever the run says of its own seconds."""
_TAIL_BYTES = 4096
"""Of what the process said; and at most so many come before its losses."""


class CodeFileError(Exception):
    """The code file did not score a text; the message is one line."""


class CodeFile:
    """The code file of a run as a scorer; use it as a context manager.

    Every text is scored by a process of its own, in a new folder that contains train_gpt.py,
    model.bin, tokenizer.model and the text, and nothing else. The process cannot import the
    installed package, and its environment names no directory of modules.
    """

    def __init__(self, run: RunDir, device: str, threads: int | None) -> None:
        """Score with the files of `run`; `threads`: of the CPU, by default PyTorch's choice."""
        self._files: dict[str, bytes] = {}
        """Read before any of it runs: the code file could replace itself."""
        for file in (run.code, run.artifact, run.tokenizer):
            with suppress(UserError):
                self._files[file.name] = read_file(file)
        self._names = [run.code.name, run.artifact.name, run.tokenizer.name]
        self._device = device
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }
        if threads is not None:
            self._environment["OMP_NUM_THREADS"] = str(threads)
        self._process: subprocess.Popen[str] | None = None

    @property
    def content(self) -> bytes | None:
        """What is in the code file; None if it cannot be read."""
        return self._files.get(self._names[0])

    def __enter__(self) -> CodeFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def losses(
        self,
        tokens: NDArray[np.uint16],
        stride: int,
        fixed: bool,
        max_seconds: float,
        waiting: Callable[[float], None] = lambda seconds: None,
    ) -> Losses:
        """Return the loss of every target in nats, (N,), all finite.

        Args:
            tokens: (N + 1,) the stream.
            stride: of sliding windows; 0: consecutive windows.
            fixed: do not learn, even if the recipe does.
            max_seconds: after which the process is stopped; four hours at most.
            waiting: called at once, and then once a second, with the seconds so far.

        Raises:
            CodeFileError: if it fails, takes too long or writes anything else.
        """
        with tempfile.TemporaryDirectory(prefix="paramgolf-") as name:
            folder = Path(name)
            for file in self._names:
                if file not in self._files:
                    raise CodeFileError(f"{file} cannot be read")
                (folder / file).write_bytes(self._files[file])
            write_shard(folder / "text.bin", tokens)
            arguments = [self._names[0], "score", "--text", "text.bin", "--device"]
            arguments += [self._device, "--stride", str(stride), "--losses", "losses.npy"]
            arguments += ["--fixed"] if fixed else []
            status = self._run([name, *arguments], min(max_seconds, _MAX_SECONDS), waiting)
            if status:
                raise CodeFileError(_last_line(folder / "errors") or f"it ended with {status}")
            return _read_losses(folder / "losses.npy", len(tokens) - 1)

    def _run(self, job: list[str], max_seconds: float, waiting: Callable[[float], None]) -> int:
        """Run a job of `isolated`; return its exit status."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        began = time.monotonic()
        waiting(0.0)
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            while not select.select([process.stdout], [], [], 1)[0]:
                seconds = time.monotonic() - began
                if seconds > max_seconds:
                    raise CodeFileError(f"it did not end within {max_seconds:.0f} s")
                waiting(seconds)
            answer = process.stdout.readline().strip()
            if not answer.lstrip("-").isdigit():
                raise CodeFileError("its process ended")
            return int(answer)
        except OSError as error:
            self._stop()
            raise CodeFileError("its process ended") from error
        except BaseException:
            self._stop()
            raise

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-I", isolated.__file__],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # so that its children end with it
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name for name in sys.path if name]) + "\n")
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _last_line(path: Path) -> str:
    """Return the last line of what a process said, without control characters."""
    try:
        with open_file(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    said = lines[-1] if lines else ""
    return "".join(c if c.isprintable() else " " for c in said).strip()[:_MAX_ERROR_CHARS]


def _read_losses(path: Path, count: int) -> Losses:
    """Read what the code file wrote: `count` finite numbers in float64."""
    try:
        with open_file(path) as opened:
            file = io.BytesIO(opened.read(_TAIL_BYTES + 8 * count))
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not as numpy.save writes so many numbers")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if shape != (count,) or dtype != np.float64:
            raise CodeFileError(f"it wrote other losses than {count:,} numbers")
        losses = np.frombuffer(file.read(8 * count), np.float64, count).copy()
    except (OSError, ValueError, EOFError, RecursionError, MemoryError) as error:
        raise CodeFileError("it wrote no losses") from error
    if not np.isfinite(losses).all():
        raise CodeFileError("the model's losses are not finite")
    return losses
