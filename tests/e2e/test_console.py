"""What a run prints on a terminal of 80 columns, and without a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import termios
from pathlib import Path

from tests.e2e import command
from tests.e2e.conftest import FinishedRun


def on_terminal(*arguments: str | Path, cwd: Path, columns: int) -> str:
    """Run a command in a pseudo-terminal; return everything that it wrote."""
    read_end, write_end = os.openpty()
    termios.tcsetwinsize(write_end, (24, columns))
    environment = {key: value for key, value in command.ENVIRONMENT.items() if key != "COLUMNS"}
    process = subprocess.Popen(
        command.command(*arguments),
        cwd=cwd,
        env=environment | {"TERM": "xterm"},
        stdin=write_end,
        stdout=write_end,
        stderr=write_end,
    )
    os.close(write_end)
    written = b""
    try:
        while part := os.read(read_end, 1 << 16):
            written += part
    except OSError:  # the terminal's last user has closed it
        pass
    os.close(read_end)
    assert process.wait(command.TIMEOUT) == 0, written.decode()
    return written.decode()


def visible(written: str) -> list[str]:
    """All lines that were ever visible, without styles."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[mK]", "", written).strip())


def test_everything_fits_a_terminal(options: list[str], tmp_path: Path) -> None:
    written = on_terminal("run", "tiny", *options, "--out", "run", cwd=tmp_path, columns=80)
    lines = visible(written)
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    bars = [line for line in lines if "%" in line]
    assert {line.split()[0] for line in bars} >= {"train", "adapt", "pack", "score"}
    assert any("loss" in line and "tokens/s" in line for line in bars)
    assert any(re.search(r" left, run ", line) for line in bars)
    # One line remains of every stage; all others are replaced.
    stages = re.findall(r"^(\w+) +[\d:]+ s?  ", "\n".join(lines), re.MULTILINE)
    assert stages == ["prepare", "train", "adapt", "pack", "score"]
    kept = re.sub(r"\r[^\r\n]*\x1b\[K", "", written).splitlines()
    assert not [line for line in kept if "%" in line]
    assert lines[-1] == 'paramgolf generate run --prompt "Return the"'.rjust(54)


def test_no_control_characters_without_a_terminal(mini_run: FinishedRun) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", mini_run.stdout)
    stages = mini_run.stdout.split("\n\n")[0].split("/run\n", 1)[1].splitlines()
    done = [line for line in stages if not line.startswith(" ")]
    assert [line.split()[0] for line in done] == ["prepare", "train", "adapt", "pack", "score"]
    assert max(map(len, stages)) <= 80
