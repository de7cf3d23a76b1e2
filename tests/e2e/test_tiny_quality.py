"""The recipe `tiny` unchanged, as a user runs it on two cores."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import command
from tests.e2e.mini import read_results, table_rows

CEILING = 1.822  # mean of five seeds + 4 standard deviations: docs/experiments/tiny-seeds.md
MAX_CPU_SECONDS = 1200
"""Ten minutes on two cores; a busy machine does not count."""


@pytest.mark.slow
def test_tiny_is_quick_small_and_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command("run", "tiny", "--device", "cpu", "--out", tmp_path / "run"),
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        capture_output=True,
        timeout=3600,  # it hangs
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, b"")
    results = read_results(tmp_path / "run")
    stages = results["stages"]
    assert list(stages) == ["ema", "adapted", "quantized", "sliding"]
    assert {score["label"] for score in stages.values()} == {"held-out"}
    assert all(row[-1] == "held-out" for row in table_rows(done.stdout.decode())[:4])
    files = [tmp_path / "run" / name for name in ("model.bin", "train_gpt.py")]
    size = sum(file.stat().st_size for file in files)
    budget = results["bytes"]["budget"]
    assert budget - 2_000 < size == results["bytes"]["total"] <= budget
    assert stages["sliding"]["bpb"] < stages["quantized"]["bpb"] < results["xz"]["bpb"]
    assert stages["adapted"]["bpb"] < stages["ema"]["bpb"]
    assert stages["sliding"]["bpb"] <= CEILING
    assert after.ru_utime - before.ru_utime < MAX_CPU_SECONDS
    with capsys.disabled():
        print("\n" + coding_table(tmp_path / "run" / "model.bin"))


def coding_table(artifact: Path) -> str:
    """Table of docs/experiments/coding.md for this artifact: our coder is smaller than Brotli."""
    script = Path(__file__).parents[2] / "scripts" / "coding_table.py"
    done = subprocess.run([sys.executable, script, artifact], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    against_brotli = re.search(r"^\| ours \| [\d,]+ \| (.*)% \|$", done.stdout, re.M)
    assert against_brotli
    assert float(against_brotli[1]) < -1.6
    return done.stdout
