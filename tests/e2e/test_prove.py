"""A score is proven only if another process decodes the text."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paramgolf.data.tokenizer_training import train_tokenizer
from tests.e2e import command
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import texts_of
from tests.e2e.test_compress import TEXT


def documents_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "documents.safetensors")


@pytest.mark.parametrize(
    ("mode", "stage", "size"), [("plain", "quantized", 1500), ("sliding", "sliding", 1)]
)
def test_the_reported_score_of_whole_documents_is_proven(
    cli: Cli, mini_run: FinishedRun, mode: str, stage: str, size: int, tmp_path: Path
) -> None:
    out = tmp_path / "proof.json"
    result = cli("prove", mini_run.path, "--mode", mode, "--bytes", str(size), "--out", out)
    assert result.code == 0, result.stderr
    assert "bit for bit, by another process" in result.stdout
    proof = json.loads(out.read_text())
    assert proof["holds"]
    reported = documents_of(mini_run.path)
    ends = reported["bytes"].cumsum(0).tolist()
    count = max(1, sum(end <= size for end in ends))
    assert (proof["documents"], proof["text_bytes"]) == (count, ends[count - 1])
    nats = float(reported[stage][:count].sum())
    assert proof["claim"]["nats"] == pytest.approx(nats, rel=1e-12)
    assert proof["claimed_bytes"] == pytest.approx(nats / math.log(2) / 8)
    excess = proof["stream_bytes"] - proof["claimed_bytes"] - proof["lane_bytes"]
    assert abs(excess) < proof["slack_bytes"]
    assert proof["slack_bytes"] < 0.001 * proof["claimed_bytes"] + 8.1
    assert proof["slack_bpb"] == pytest.approx(8 * proof["slack_bytes"] / proof["text_bytes"])
    part = f"the first {count} of {len(ends)} documents, {ends[count - 1]:,} of {ends[-1]:,} bytes"
    assert part in result.stdout
    assert f"proven: {stage}, for these documents; the rest is for the audit" in result.stdout
    another = "The run's last score is another: sliding, "
    assert (another in result.stdout) == (mode == "plain")
    files = [mini_run.path / name for name in ("model.bin", "tokenizer.model", "train_gpt.py")]
    parts = sum(file.stat().st_size for file in files)
    assert proof["two_part_bytes"] == parts + proof["stream_bytes"]


def test_any_text_is_proven(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT.encode() * 9)
    model = mini_run.path / "model.bin"
    result = cli("prove", model, "--text", tmp_path / "text", "--bytes", "0")
    assert result.code == 0, result.stderr
    assert "verdict   proven" in result.stdout


@pytest.mark.slow
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
    command = ["prove", tmp_path / "run", "--overwrite", "--out", tmp_path / "proof.json"]
    assert "verdict   proven" in cli(*command).stdout
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["lanes"] == 4  # of at least 1,024 targets
    assert proof["stream_bytes"] - proof["claimed_bytes"] < 3 * 11 / 8 + proof["slack_bytes"]
    many_lanes = "import paramgolf.scoring.text_coder as coder; coder._LANE_TARGETS = 1"
    result = cli(*command, patch=many_lanes)
    assert "verdict   proven" in result.stdout
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["lanes"] == 64
    assert 0 < proof["lane_bytes"] < 63 * 11 / 8
    excess = proof["stream_bytes"] - proof["claimed_bytes"]
    assert excess > 64 + proof["slack_bytes"]
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
def test_a_score_that_cheats_is_not_proven(
    mini_run: FinishedRun, source: Path, tmp_path: Path
) -> None:
    """Losses are computed 0.5 nats too small: no stream is that short."""
    cheat = (
        "from paramgolf.model.gpt import GPT\n"
        "honest = GPT.predicted_nats\n"
        "GPT.predicted_nats = lambda self, *given: honest(self, *given) - 0.5\n"
    )
    (tmp_path / "sitecustomize.py").write_text(cheat)
    (tmp_path / "text").write_text("".join(texts_of(source, "val")[:2]))
    environment = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    arguments = ("prove", mini_run.path, "--text", tmp_path / "text")
    result = command.run(*arguments, env=environment)
    assert result.code == 1
    assert "not proven" in result.stdout
    assert "bit for bit" in result.stdout
    assert "the score computed here claims" in result.stderr
