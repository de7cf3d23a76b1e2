"""The first hour of two new users, through the command as it is installed, in an empty folder.

One has a laptop and 40 notes, three of them unreadable; the other wants to compete and has no data.
Every command that the program proposes is executed as it was printed.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import ENVIRONMENT, TIMEOUT, Result
from tests.e2e.mini import texts_of

COMMAND = Path(sys.executable).with_name("paramgolf")
SMALL = (
    "--device cpu --model.num-layers 4 --model.width 32 --model.num-heads 2 "
    "--model.num-kv-heads 1 --model.seq-len 64 --model.rotary-dims 8 --model.loop-first 1 "
    "--model.loop-last 2 --model.parallel-from 3 --train.max-steps 6 --train.batch-tokens 512 "
    "--train.micro-batch-tokens 512 --adapt.epochs 1 --adapt.chunk-tokens 1024 "
    "--pack.calibration-batches 2 --pack.calibration-batch-tokens 512 "
    "--pack.budget-bytes 100000 --score.stride 32 --score.batch-tokens 4096"
)
"""What turns a recipe into seconds; a user would wait instead."""


def paramgolf(line: str, cwd: Path) -> Result:
    """Execute a command line as a shell would."""
    words = shlex.split(line)
    words = words[1:] if words[0] == "paramgolf" else words
    done = subprocess.run(
        [COMMAND, *words], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert "unexpected" not in done.stderr
    assert "Traceback" not in done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def worked(line: str, cwd: Path) -> str:
    result = paramgolf(line, cwd)
    assert result.code == 0, result.stderr
    return result.stdout


def proposed(text: str, start: str) -> str:
    """The command in a text that begins with `start`, without quotation marks around it."""
    found = re.search(rf"{re.escape(start)}[^`\n]*", text)
    assert found, text
    return found[0].rstrip()


@pytest.mark.slow
def test_a_laptop_with_notes(source: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    texts = [*texts_of(source, "train"), *texts_of(source, "val")]
    for number, text in enumerate(texts[-37:]):
        (notes / f"{number:02}.md").write_text(text)
    (notes / "photo.md").write_bytes(bytes(range(256)) * 40)
    (notes / "latin.txt").write_bytes("na\u00efve caf\u00e9\n".encode("latin-1") * 50)
    (notes / "wide.txt").write_bytes("half a file".encode("utf-16-le") + b"\xff")
    build = "paramgolf data build notes --out data/notes --vocab-size 600"
    refused = paramgolf(build, tmp_path)
    assert refused.code != 0
    assert all(name in refused.stderr for name in ("photo.md", "latin.txt", "wide.txt"))
    assert "--skip-bad" in refused.stderr
    printed = worked(f"{build} --skip-bad", tmp_path)
    run = proposed(printed, "paramgolf run tiny")
    worked(f"{run} {SMALL} --dry-run", tmp_path)
    assert not (tmp_path / "runs").exists()
    printed = worked(f"{run} {SMALL}", tmp_path)
    last_lines = "\n".join(printed.splitlines()[-8:])
    worked(proposed(last_lines, "paramgolf report"), tmp_path)
    generated = proposed(last_lines, "paramgolf generate")
    assert worked(f"{generated} --max-tokens 20", tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert "tiny" in worked("paramgolf list", tmp_path)
    assert "total" in worked(f"paramgolf score {folder} notes/00.md notes/01.md", tmp_path)
    again = worked(f"paramgolf run --resume {folder}", tmp_path)
    assert "finished before" in again


@pytest.mark.slow
def test_a_competitor_without_data(source: Path, tmp_path: Path) -> None:
    assert "tiny" in worked("paramgolf --help", tmp_path)
    for recipe, command in (("record", "data fetch"), ("h200", "data build")):
        refused = paramgolf(f"paramgolf run {recipe}", tmp_path)
        assert refused.code in (1, 2)
        assert refused.stderr.count("\n") == 1
        assert f"paramgolf {command}" in refused.stderr
        assert not list(tmp_path.iterdir())
    assert "about" in worked("paramgolf run tiny --dry-run", tmp_path)
    # His own text in place of the bench's: h200 with another source asks for no file of corpus/.
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts_of(source, "train")):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    worked("paramgolf data build texts --out data/mine --vocab-size 600", tmp_path)
    small = SMALL.replace("--train.max-steps 6", "--train.max-steps 2")
    printed = worked(
        f"paramgolf run h200 --data.source data/mine --data.val-targets 0 --model.vocab-size 600 "
        f"{small} --out runs/mine",
        tmp_path,
    )
    assert "held-out" in printed
    worked("paramgolf bundle runs/mine --out alone", tmp_path)
    assert (tmp_path / "alone" / "train_gpt.py").is_file()
