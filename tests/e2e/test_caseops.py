"""CaseOps from end to end: all commands read, write and count the original text."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from paramgolf.data.caseops import CAPS, ESCAPE, NEXT, OPERATORS, TITLE
from paramgolf.data.shards import open_shard, write_shard
from paramgolf.data.sidecars import sidecar_of
from paramgolf.data.tokenizer import Tokenizer
from tests.e2e import cheats, command
from tests.e2e.command import Cli, one_line_error
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import mini_options, read_results, table_rows, texts_of, write_source
from tests.e2e.test_audit import audited, failed

TEXT = (
    f"NASA's iPhone, McDonald and HTMLParser: I say ABc, iOS. {TITLE}The {ESCAPE}{CAPS}X {NEXT}\r\n"
    f"\u2581{TITLE}\u2581 \u00c9A caf\u00e9 \U0001f600{ESCAPE} {OPERATORS}Zz"
)


@pytest.fixture(scope="module")
def cased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like `source`, whose validation text begins with odd cases."""
    folder = tmp_path_factory.mktemp("cased")
    write_source(folder)
    val = folder / "val.jsonl"
    val.write_text(json.dumps({"text": TEXT}) + "\n" + val.read_text())
    return folder


@pytest.fixture(scope="module")
def run(cli: Cli, cased: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all validation documents; do not write to its folder."""
    path = tmp_path_factory.mktemp("caseops") / "run"
    options = [*mini_options(cased), "--data.val-targets", "0", "--adapt.text", "none"]
    result = cli("run", "tiny", *options, "--data.case-ops", "True", "--out", path)
    assert result.code == 0, result.stderr
    return path


def test_the_score_is_over_the_original_bytes(cli: Cli, run: Path, cased: Path) -> None:
    results = read_results(run)
    texts = texts_of(cased, "val")
    size = sum(len(text.encode()) for text in texts)
    assert Tokenizer.load(run / "tokenizer.model").case_ops
    for score in results["stages"].values():
        assert score["bytes"] == size
        nats = score["loss_nats"] * score["tokens"]
        assert score["bpb"] == pytest.approx(nats / math.log(2) / size)
        assert score["label"] == "held-out"
    result = cli("score", run / "model.bin", cased / "val.jsonl")
    assert result.code == 0, result.stderr
    assert f"{results['stages']['sliding']['bpb']:.4f}" in result.stdout
    assert f"{size:,}" in result.stdout


def test_the_report_shows_operators_as_symbols(cli: Cli, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert cli("report", run, "--out", out).code == 0
    page = out.read_text()
    assert "<i>\u21e7</i></span>" in page
    assert "U+E001" not in page
    assert "\ue001" not in page


@pytest.mark.slow
def test_the_audit_passes(run: Path) -> None:
    result = audited(run)
    assert result.code == 0, result.stdout + result.stderr
    assert "FAIL" not in result.stdout


@pytest.mark.slow
def test_operators_that_count_as_text_are_caught(run: Path, tmp_path: Path) -> None:
    """They would add 3 bytes per capital and improve the score."""
    cheating, patches = tmp_path / "run", tmp_path / "patches"
    shutil.copytree(run, cheating)
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(cheats.COUNTED_OPERATORS)
    for name in ("stages/score.json", "results.json"):
        (cheating / name).unlink()
    path = os.pathsep.join([str(patches), os.environ.get("PYTHONPATH", "")])
    result = command.run("run", "--resume", cheating, env={"PYTHONPATH": path})
    assert result.code == 0, result.stderr
    bpb = [read_results(folder)["stages"]["sliding"]["bpb"] for folder in (cheating, run)]
    assert bpb[0] < bpb[1]
    for environment in ({"PYTHONPATH": path}, {}):
        assert audited(cheating, **environment).code == 1
        assert "bytes" in failed(cheating)


@pytest.mark.slow
def test_the_score_is_proven(cli: Cli, run: Path) -> None:
    result = cli("prove", run, "--bytes", "1500")
    assert result.code == 0, result.stdout + result.stderr
    assert "bit for bit, by another process" in result.stdout


def test_a_compressed_text_is_restored(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT.encode() * 5)
    model = run / "model.bin"
    assert cli("compress", model, tmp_path / "text", "--out", tmp_path / "small").code == 0
    result = cli("decompress", model, tmp_path / "small", "--out", tmp_path / "back")
    assert (result.code, (tmp_path / "back").read_bytes()) == (0, TEXT.encode() * 5)


def test_a_given_tokenizer_decides(
    cli: Cli, run: Path, cased: Path, source: Path, mini_run: FinishedRun, tmp_path: Path
) -> None:
    plain = mini_run.path / "tokenizer.model"
    options = [*mini_options(source), "--data.tokenizer", str(plain), "--out", str(tmp_path / "r")]
    assert cli("run", "tiny", *options, "--data.case-ops", "True").code == 0
    assert (tmp_path / "r" / "tokenizer.model").read_bytes() == plain.read_bytes()
    options = ["data", "build", str(cased / "train.jsonl"), "--out", str(tmp_path / "b")]
    refused = cli(*options, "--tokenizer", plain, "--case-ops")
    assert "--case-ops" in one_line_error(refused, 2)
    assert cli(*options, "--tokenizer", run / "tokenizer.model").code == 0
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["tokenizer"]["case_ops"]


@pytest.fixture(scope="module")
def built(cli: Cli, cased: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder built with `data build --case-ops`; do not write to it."""
    out = tmp_path_factory.mktemp("built") / "out"
    result = cli(
        "data", "build", cased / "train.jsonl", "--val", cased / "val.jsonl", "--case-ops",
        "--vocab-size", "512", "--shard-tokens", "5000", "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.stderr
    return out


def test_build_writes_sidecars(cli: Cli, built: Path, cased: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["tokenizer"]["case_ops"]
    assert manifest["settings"]["case_ops"]
    tokenizer = Tokenizer.load(built / "tokenizer.model")
    shards = sorted(built.glob("text_val_0*.bin"))
    assert len(shards) > 1
    assert list(manifest["splits"]["val"]["sidecars"]) == [sidecar_of(path).name for path in shards]
    tokens = np.concatenate([open_shard(path) for path in shards])
    counts = np.concatenate([open_shard(sidecar_of(path)) for path in shards])
    ends = [*np.flatnonzero(tokens == tokenizer.bos)[1:].tolist(), len(tokens)]
    sizes = np.diff(np.concatenate([[0], np.cumsum(counts)[np.array(ends) - 1]]))
    assert sizes.tolist() == [len(text.encode()) for text in texts_of(cased, "val")]
    info = cli("data", "info", built)
    assert info.code == 0, info.stderr
    assert f"{len(shards)}, {int(counts.sum()):,} bytes" in info.stdout
    assert f"and {len(shards)} sidecars" in info.stdout
    assert "CaseOps" in info.stdout
    assert f"matches all {len(list(built.glob('*_0*.bin'))) - len(shards)} shards" in info.stdout
    rows = {row[0]: row for row in table_rows(info.stdout)}
    assert rows["val"][3:] == [f"{counts.sum():,}", f"{counts.sum() / len(tokens):.3f}",
                               f"{len(shards)}"]  # fmt: skip


@pytest.mark.slow
def test_a_run_on_what_was_built(
    cli: Cli, built: Path, cased: Path, run: Path, tmp_path: Path
) -> None:
    options = [*mini_options(built), "--data.val-targets", "0", "--adapt.text", "none"]
    result = cli("run", "tiny", *options, "--out", tmp_path / "run")
    assert result.code == 0, result.stderr
    size = sum(len(text.encode()) for text in texts_of(cased, "val"))
    assert read_results(tmp_path / "run")["stages"]["sliding"]["bytes"] == size
    # The glob also matches the sidecars, which are not read as text.
    shards = sorted(built.glob("*_val_*.bin"))
    assert len(shards) > len(list(built.glob("text_val_0*.bin")))
    result = cli("score", tmp_path / "run" / "model.bin", *shards)
    assert result.code == 0, result.stderr
    assert f"{size:,}" in result.stdout


def test_a_wrong_sidecar_is_reported(cli: Cli, built: Path, tmp_path: Path) -> None:
    for path in built.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    wrong = sidecar_of(sorted(tmp_path.glob("text_val_0*.bin"))[1])
    counts = open_shard(wrong).copy()
    counts[7] += 9
    write_shard(wrong, counts)
    refused = cli("run", "tiny", *mini_options(tmp_path), "--out", tmp_path / "run")
    message = one_line_error(refused, 1)
    assert wrong.name in message
    assert (
        f"states {counts[7]} bytes for token 7, but the tokenizer counts {counts[7] - 9}" in message
    )
    info = cli("data", "info", tmp_path)
    assert info.code == 0
    assert "WRONG" in info.stdout
    assert f"does not match: {wrong.name}" in info.stdout
