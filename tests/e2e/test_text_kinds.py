"""Eight kinds of collections, each from files to a proven score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.command import Cli
from tests.e2e.mini import mini_options, read_results, table_rows
from tests.e2e.text_kinds import KINDS, documents
from tests.reference import Scorer, bits_per_byte, encoded, impossible_successors

NUM_TARGETS = 2000


def succeeded(cli: Cli, *arguments: str | Path) -> str:
    """Run a command that must succeed, and may report progress; return its output."""
    result = cli(*arguments)
    assert result.code == 0, result
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_from_files_to_a_proven_score(cli: Cli, name: str, tmp_path: Path) -> None:
    """Build, run, score, compress and decompress, audit, prove."""
    kind = KINDS[name]
    texts, new = documents(name, kind.num_documents, 0), documents(name, 4, 1)
    collection, built, run = (tmp_path / folder for folder in ("collection", "built", "run"))
    collection.mkdir()
    given = kind.write(collection, texts)

    succeeded(cli, "data", "build", given, "--out", built, "--vocab-size", str(kind.vocab_size))
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["documents"] == {"read": len(texts), "blank": 0, "empty": 0, "duplicates": 0}
    sizes = [split["bytes"] for split in manifest["splits"].values()]
    assert sum(sizes) == sum(len(text.encode()) for text in texts)
    succeeded(cli, "data", "info", built)

    succeeded(cli,
        "run", "tiny", *mini_options(built), "--model.vocab-size", str(kind.vocab_size),
        "--data.val-targets", str(NUM_TARGETS), "--pack.budget-bytes", "90000", "--out", run,
    )  # fmt: skip
    stages = read_results(run)["stages"]
    assert {score["label"] for score in stages.values()} == {"held-out"}
    assert {score["bytes_are"] for score in stages.values()} == {"original"}

    _check_score(cli, run, new, tmp_path)
    _check_round_trip(cli, run, "".join(new).encode(), tmp_path)
    succeeded(cli, "audit", run, "--positions", "4")
    audit = json.loads((run / "audit.json").read_text())
    assert (audit["passed"], audit["failed"], audit["unverified"]) == (True, [], [])
    succeeded(cli, "prove", run, "--out", tmp_path / "proof.json")
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["failure"] == ""
    assert proof["decoded_bytes"] == proof["text_bytes"]


def _check_round_trip(cli: Cli, run: Path, text: bytes, folder: Path) -> None:
    original, packed, back = (folder / name for name in ("text", "packed", "back"))
    original.write_bytes(text)
    succeeded(cli, "compress", run, original, "--out", packed)
    succeeded(cli, "decompress", run, packed, "--out", back)
    assert back.read_bytes() == text
    assert packed.stat().st_size < len(text)


def _check_score(cli: Cli, run: Path, texts: list[str], folder: Path) -> None:
    """Compare `score` on new documents with the second scorer, on trained weights."""
    file, losses = folder / "new.jsonl", folder / "losses.npy"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    printed = succeeded(cli, "score", run, file, "--stride", "0", "--losses", losses)
    succeeded(cli, "export", run, "--out", folder / "weights")
    tokens = encoded(run / "tokenizer.model", texts)
    impossible = impossible_successors(run / "tokenizer.model", user_defined="\n")
    expected = Scorer(folder / "weights", impossible).losses(tokens, stride=0)
    assert np.load(losses).mean() == pytest.approx(expected.mean(), rel=0, abs=1e-6)
    row = table_rows(printed)[0]
    assert row[1] == f"{bits_per_byte(expected, texts):.4f}"
    assert row[4] == f"{sum(len(text.encode()) for text in texts):,}"
    assert row[5] == "held-out"
