"""A score is proven only if another process decodes the text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paramgolf.data.tokenizer_training import train_tokenizer
from tests.e2e import command
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import texts_of
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


def test_a_repetitive_text_is_proven(
    cli: Cli, options: list[str], source: Path, tmp_path: Path
) -> None:
    """The first tokens of 63 lanes, at 11 bits each, take more than 64 bytes."""
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(train_tokenizer(texts_of(source, "train"), 2048))
    for split, size in (("train", 8000), ("val", 5000)):
        lines = [json.dumps({"text": "a" * size}) + "\n"] * (10 if split == "train" else 1)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    different = ["--data.source", tmp_path, "--data.tokenizer", tokenizer, "--adapt.text", "none"]
    different += ["--data.val-targets", "5000", "--model.vocab-size", "2048"]
    different += ["--pack.budget-bytes", "130000", "--out", tmp_path / "run"]
    result = cli("run", "tiny", *options, *different)
    assert result.code == 0, result.stderr
    result = cli("prove", tmp_path / "run", "--out", tmp_path / "proof.json")
    assert "verdict   proven" in result.stdout
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["lanes"] == 64
    assert 0 < proof["lane_bytes"] < 63 * 11 / 8
    excess = proof["stream_bytes"] - proof["claimed_bytes"]
    assert excess > 64 + 0.001 * proof["claimed_bytes"]
    assert abs(excess - proof["lane_bytes"]) < 8
    allowed = f"{proof['max_stream_bytes']:,.1f} bytes: claimed +{proof['lane_bytes']:.1f} for 64"
    assert allowed in result.stdout


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
