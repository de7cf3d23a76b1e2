"""A stranger's run folder: what lies beside the artifact is damaged, forged, or no file at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.command import Cli
from tests.e2e.mini import unboxed

FUZZ = Path(__file__).parents[2] / "scripts" / "fuzz.py"


@pytest.mark.parametrize("name", ["model.bin", "tokenizer.model", "stages/prepare.json"])
def test_a_pipe_in_place_of_a_file_does_not_hang(cli: Cli, run_copy: Path, name: str) -> None:
    (run_copy / name).unlink()
    os.mkfifo(run_copy / name)
    text = run_copy / "text.txt"
    text.write_text("Some text.\n")
    command = ("audit", run_copy) if name.endswith("json") else ("score", run_copy, text)
    start = time.monotonic()
    result = cli(*command)
    assert time.monotonic() - start < 20
    assert result.code == 1
    assert f"{name}: not a regular file" in unboxed(result.stderr)


@pytest.mark.parametrize("shard", ["../../secret.bin", "/etc/hostname"])
def test_shards_elsewhere_are_not_read(cli: Cli, run_copy: Path, shard: str) -> None:
    path = run_copy / "stages" / "prepare.json"
    prepared = json.loads(path.read_text())
    prepared["text"]["splits"]["val"]["shards"] = [shard]
    path.write_text(json.dumps(prepared))
    result = cli("report", run_copy)
    assert result.code == 1
    assert f"the shard '{shard}' in stages/prepare.json is neither in" in unboxed(result.stderr)


def test_a_link_that_leads_out_of_a_run_is_not_published(
    cli: Cli, run_copy: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    (run_copy / "provenance.safetensors").unlink()
    (run_copy / "provenance.safetensors").symlink_to(secret)
    result = cli("bundle", run_copy, "--out", tmp_path / "bundle")
    assert result.code == 1
    assert "outside of the run" in unboxed(result.stderr)
    assert not (tmp_path / "bundle" / "provenance.safetensors").exists()


@pytest.mark.slow
def test_two_hundred_changes_of_each_kind(run_copy: Path) -> None:
    kinds = ("tokenizers", "provenance", "json", "artifacts", "folders")
    counts = [word for kind in kinds for word in (f"--{kind}", "200")]
    done = subprocess.run(
        [sys.executable, str(FUZZ), str(run_copy), *counts, "--seed", "17"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for kind in kinds:
        row = next(line.split() for line in done.stdout.splitlines() if line.startswith(kind))
        refused, equal, different, *others = map(float, row[1:-1])
        assert refused + equal + different == 200
        assert others == [0, 0]
        assert refused > 80
