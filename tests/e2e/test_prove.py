"""A score is proven only if another process decodes the text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e import command
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.test_compress import TEXT


@pytest.mark.parametrize(("mode", "size"), [("plain", 3000), ("sliding", 600)])
def test_the_validation_text_is_proven(
    cli: Cli, mini_run: FinishedRun, mode: str, size: int, tmp_path: Path
) -> None:
    out = tmp_path / "proof.json"
    result = cli("prove", mini_run.path, "--mode", mode, "--bytes", str(size), "--out", out)
    assert result.code == 0, result.stderr
    assert "bit for bit, by another process" in result.stdout
    proof = json.loads(out.read_text())
    assert proof["holds"]
    assert proof["text_bytes"] == size
    assert proof["claimed_bytes"] == pytest.approx(proof["claimed_bpb"] * size / 8)
    assert abs(proof["stream_bytes"] - proof["claimed_bytes"]) < 0.001 * size + 64
    files = [mini_run.path / name for name in ("model.bin", "tokenizer.model", "train_gpt.py")]
    parts = sum(file.stat().st_size for file in files)
    assert proof["two_part_bytes"] == parts + proof["stream_bytes"]


def test_any_text_is_proven(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT.encode() * 9)
    model = mini_run.path / "model.bin"
    result = cli("prove", model, "--text", tmp_path / "text", "--bytes", "0")
    assert result.code == 0, result.stderr
    assert "verdict   proven" in result.stdout


def test_what_cannot_be_proven(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    message = cli.error("prove", mini_run.path, "--mode", "score-first", code=2)
    assert "does not learn" in message
    for name in ("model.bin", "tokenizer.model"):
        shutil.copy(mini_run.path / name, tmp_path)
    assert "--text FILE" in cli.error("prove", tmp_path, code=2)
    (tmp_path / "text").write_text("\u65e5")
    message = cli.error("prove", tmp_path, "--text", tmp_path / "text", "--bytes", "2", code=2)
    assert "invalid --bytes = 2: the first character is longer" in message


@pytest.mark.slow
def test_a_score_that_cheats_is_not_proven(mini_run: FinishedRun, tmp_path: Path) -> None:
    """Losses are reported 0.5 nats too small: no stream is that short."""
    cheat = (
        "from paramgolf.model.gpt import GPT\n"
        "honest = GPT.target_nats\n"
        "GPT.target_nats = lambda self, *given: honest(self, *given) - 0.5\n"
    )
    (tmp_path / "sitecustomize.py").write_text(cheat)
    environment = {"PYTHONPATH": str(tmp_path)}
    result = command.run("prove", mini_run.path, "--bytes", "0", env=environment)
    assert result.code == 1
    assert "not proven" in result.stdout
    assert "bit for bit" in result.stdout
