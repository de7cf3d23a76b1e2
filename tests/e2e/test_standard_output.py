"""Commands end quietly when nobody reads their output, and in one line when the disk is full."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paramgolf.cli.main import _COMMANDS
from tests.e2e import command
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.written_runs import write_run

FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
CLOSED = "import os; ends = os.pipe(); os.dup2(ends[1], 1); os.close(ends[0])"
NO_SPACE = "paramgolf: cannot write to standard output: No space left on device\n"
PRINTING = [
    ["--help"],
    ["--version"],
    ["--print-completion", "bash"],
    *([name, "--help"] for name in _COMMANDS),
    *(["data", name, "--help"] for name in ("build", "fetch", "info")),
    *([name, "tiny", "--help"] for name in ("run", "seeds", "ablate")),
]
OF_A_RUN = [
    ["list", "RUN"],
    ["score", "RUN", "TEXT"],
    ["generate", "RUN", "--prompt", "It", "--max-tokens", "3"],
    ["prove", "RUN", "--bytes", "100"],
    ["data", "info", "RUN/data", "--tokenizer", "RUN/tokenizer.model"],
    ["run", "--resume", "RUN"],
]


def check(cli: Cli, *arguments: str | Path) -> None:
    for patch, message in ((FULL, NO_SPACE), (CLOSED, "")):
        code, printed, said = cli(*arguments, patch=patch)
        lines = said.splitlines(keepends=True)
        progress = [line for line in lines if line.startswith("  ")]  # on standard error
        assert (code, printed, said.removeprefix("".join(progress))) == (1, "", message)


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_help(cli: Cli, arguments: list[str]) -> None:
    check(cli, *arguments)


@pytest.mark.parametrize("arguments", OF_A_RUN, ids=" ".join)
def test_results(cli: Cli, mini_run: FinishedRun, arguments: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Some words to score.\n")
    named = [
        word.replace("RUN", str(mini_run.path)).replace("TEXT", str(text)) for word in arguments
    ]
    check(cli, *named)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("to", ["full", "closed"])
@pytest.mark.parametrize("what", ["paramgolf", "train_gpt.py"])
def test_the_end_of_the_interpreter(
    what: str, to: str, unbuffered: str, mini_run: FinishedRun
) -> None:
    """Python flushes standard output once more, and would complain about it."""
    started = command.command("--help")
    if what == "train_gpt.py":
        started[1:] = [str(mini_run.path / what), "--help"]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            started,
            env=command.ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full if to == "full" else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    if process.stdout is not None:
        process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(command.TIMEOUT) == 1
    expected = NO_SPACE if what == "paramgolf" else NO_SPACE.removeprefix("paramgolf: ")
    assert said == (expected if to == "full" else "")


def test_without_standard_output() -> None:
    script = 'exec "$@" >&-'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command.command("--version")],
        env=command.ENVIRONMENT,
        capture_output=True,
        timeout=command.TIMEOUT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_characters_that_the_terminal_lacks(tmp_path: Path) -> None:
    """A locale without UTF-8, and a file name that is none."""
    folder = tmp_path / "Gr\u00fc\udcff"
    write_run(folder / "run")
    result = command.run("list", folder, env=command.ENVIRONMENT | {"PYTHONIOENCODING": "ascii"})
    assert result.code == 0, result.stderr
    assert "Gr\\xfc" in result.stdout


def test_a_directory_that_was_removed(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = f"rmdir {tmp_path}/gone; {sys.executable} -m paramgolf list"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path / "gone", capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the current directory no longer exists" in done.stderr


def test_names_of_files(cli: Cli) -> None:
    assert "a file name is too long: " in cli.error("run", "tiny", "--out", "a" * 300)
    said = cli.error("run", "tiny", "--data.source=~/no-such-folder")
    assert f"{Path.home()}/no-such-folder' is not a directory" in said


def test_a_crash_says_where(tmp_path: Path) -> None:
    """As when a shard is truncated while it is mapped."""
    file = tmp_path / "shard"
    file.write_bytes(bytes(1 << 16))
    patch = (
        "import os, numpy as np, paramgolf.cli.main as cli\n"
        "def dispatch(_):\n"
        f"    mapped = np.memmap({str(file)!r}, np.uint8, 'r')\n"
        f"    os.truncate({str(file)!r}, 0)\n"
        "    mapped.sum()\n"
        "cli._dispatch = dispatch\n"
    )
    done = subprocess.run(command.command(patch=patch), capture_output=True, text=True)
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr
    assert "in dispatch" in done.stderr
