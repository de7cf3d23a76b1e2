"""Several runs in one command: seeds, a comparison, a grid, and a submission of the seeds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paramgolf.study.seeds import read_seeds
from tests.e2e import command
from tests.e2e.command import Cli, one_line_error
from tests.e2e.mini import read_results, stages_started, table_rows, without_times

pytestmark = pytest.mark.slow

SEEDS = ("1", "2", "3")


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "seeds.json").read_text())


@pytest.fixture(scope="module")
def good(cli: Cli, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "good"
    printed = cli.output("seeds", "tiny", "--seeds", *SEEDS, *options, "--out", out)
    rows = {row[0]: row for row in table_rows(printed)}
    mean = summary(out)["statistics"]["bpb sliding"]["mean"]
    assert rows["BPB, quantized, sliding"][1] == f"{mean:.4f}"
    assert rows["BPB, quantized, sliding"][-1] == "held-out"
    for seed in SEEDS:
        bpb = read_results(out / f"seed-{seed}")["stages"]["sliding"]["bpb"]
        assert rows[seed][1] == f"{bpb:.4f}"
        assert rows[seed][-1] == "finished"
    return out


@pytest.fixture(scope="module")
def bad(cli: Cli, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeds that are trained for a third of the steps."""
    out = tmp_path_factory.mktemp("seeds") / "bad"
    worse = [*options, "--train.max-steps", "2"]
    cli.output("seeds", "tiny", "--seeds", *SEEDS, *worse, "--out", out)
    return out


def test_a_run_among_several_equals_the_same_run_alone(
    good: Path, cli: Cli, options: list[str], tmp_path: Path
) -> None:
    """The second of three runs in one process is bit for bit the same."""
    cli.output("run", "tiny", *options, "--seed", "2", "--out", tmp_path / "alone")
    ours, theirs = good / "seed-2", tmp_path / "alone"
    for name in ("model.bin", "train_gpt.py", "documents.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert without_times(read_results(ours)) == without_times(read_results(theirs))


def test_the_verdict(good: Path, bad: Path, cli: Cli, tmp_path: Path) -> None:
    printed = cli.output("compare", good, bad, "--out", tmp_path / "verdict.json")
    assert "A is better than B by more than 0.005 nats per token" in printed
    said = json.loads((tmp_path / "verdict.json").read_text())
    assert (said["verdict"], said["label"], said["stage"]) == ("better", "held-out", "sliding")
    low, high = said["interval_bpb"]
    assert 0 < said["margin_bpb"] < low < said["gain_bpb"] < high
    assert "A is worse than B" in cli.output("compare", bad, good)
    alone = cli.output("compare", good / "seed-1", bad / "seed-1")
    assert "not applicable: needs 2 seeds" in alone


def test_seeds_resume(good: Path, cli: Cli, options: list[str], tmp_path: Path) -> None:
    """Of three runs one is not scored yet, one has an unreadable artifact, and one is new."""
    out = Path(shutil.copytree(good, tmp_path / "seeds"))
    for seed in ("1", "2"):
        for name in ("results.json", "stages/score.json"):
            (out / f"seed-{seed}" / name).unlink()
    (out / "seed-2" / "model.bin").write_bytes(b"damaged")
    result = cli("seeds", "tiny", "--seeds", "2", "1", "4", *options, "--out", out)
    assert "1 of 3 seeds failed: 2" in one_line_error(result)
    assert re.search(r"seed 2 failed: .*model\.bin", result.stdout)
    said = summary(out)
    assert said["over"] == [1, 3, 4]
    assert said["left_out"] == [2]
    assert "3 of 4 seeds; left out: 2 (failed)" in result.stdout
    assert without_times(read_results(out / "seed-1")) == without_times(
        read_results(good / "seed-1")
    )
    # The failure is remembered and shown when only other seeds are asked for.
    printed = cli.output("seeds", "tiny", "--seeds", "1", *options, "--out", out)
    assert re.search(r"seed 2 failed: .*model\.bin", printed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_all_runs_and_is_not_a_failure(
    options: list[str], tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "seeds"
    arguments = ("seeds", "tiny", "--seeds", "1", "2", *options, "--out", out)
    process = command.start(*arguments)
    command.wait_until((out / "seed-1" / "stages" / "train.json").exists, process)
    process.send_signal(number)
    ended = command.finish(process)
    assert "the same command resumes the runs" in one_line_error(ended, code)
    assert [run.state for run in read_seeds(out).runs] == ["not finished", "missing"]
    assert [entry["seed"] for entry in summary(out)["requested"]] == [1, 2]
    environment = json.loads((out / "seed-1" / "environment.json").read_text())
    assert environment["requested_seeds"] == [1, 2]
    result = command.run(*arguments)
    assert result.code == 0, result.stderr
    assert summary(out)["over"] == [1, 2]


def test_a_grid(cli: Cli, options: list[str], tmp_path: Path) -> None:
    """One cell of two cannot meet its budget; finished stages and runs are not repeated."""
    out, vary = tmp_path / "grid", "pack.budget-bytes=88000,30000"
    arguments = ("ablate", "tiny", *options, "--vary", vary, "--out", out)
    result = cli(*arguments)
    first, second = (out / f"pack.budget_bytes={size}" / "seed-1337" for size in (88000, 30000))
    assert stages_started(first) == ["prepare", "train", "adapt", "pack", "score"]
    assert stages_started(second) == []  # refused before it starts
    assert "1 of 2 cells lack a run" in one_line_error(result)
    rows = {row[0]: row for row in table_rows(result.stdout)}
    run = read_results(out / "pack.budget_bytes=88000" / "seed-1337")
    assert rows["88000"][1] == f"{run['stages']['sliding']['bpb']:.4f}"
    assert (rows["88000"][-1], rows["30000"][-1]) == ("1 of 1", "0 of 1")
    assert re.search(r"failed: .*pack\.budget.bytes.* = 30,000", result.stdout)
    cells = json.loads((out / "ablation.json").read_text())["cells"]
    assert [cell["bpb"] is None for cell in cells] == [False, True]
    assert "pack.budget_bytes" in (out / "ablation.svg").read_text()
    events = (out / "pack.budget_bytes=88000" / "seed-1337" / "events.jsonl").read_bytes()
    assert cli(*arguments).code == 1
    again = (out / "pack.budget_bytes=88000" / "seed-1337" / "events.jsonl").read_bytes()
    assert again == events


# The submission folder.


@pytest.fixture(scope="module")
def submitted(good: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run is audited, also one whose audit.json says that it passed."""
    (good / "seed-1" / "audit.json").write_text('{"passed": true}')
    out = tmp_path_factory.mktemp("submission") / "submission"
    result = cli("submission", good, "--out", out, "--author", "A. Author", "--name", "Mini")
    assert result.code == 0, result.stderr
    for seed in SEEDS:
        assert f"audit of seed {seed}" in result.stderr
        assert json.loads((good / f"seed-{seed}" / "audit.json").read_text())["files"]
    assert "compliant as fixed predictor" in result.stdout
    return out


def test_the_folder_contains_the_figures_and_files_of_the_runs(good: Path, submitted: Path) -> None:
    said = json.loads((submitted / "submission.json").read_text())
    row = summary(good)["statistics"]["bpb sliding"]
    assert (said["val_bpb"], said["val_bpb_std"]) == (row["mean"], row["std"])
    assert (said["author"], said["name"], said["compliant"]) == ("A. Author", "Mini", True)
    chosen = sorted(SEEDS, key=lambda seed: row["by_seed"][seed])[1]
    assert said["model_of_seed"] == int(chosen)
    sizes = {p.name: p.stat().st_size for p in submitted.iterdir() if p.is_file()}
    assert said["bytes_total"] == sizes["model.bin"] + sizes["train_gpt.py"]
    names = {"README.md", "submission.json", "requirements.txt", "results.json"}
    names |= {"model.bin", "train_gpt.py", "tokenizer.model", "provenance.safetensors"}
    names |= {"environment.json"}
    assert sizes.keys() == names | {f"train_log_seed{seed}.txt" for seed in SEEDS}
    results = {p.name for p in (submitted / "results").iterdir()}
    assert results == {f"{what}seed-{seed}.json" for what in ("", "audit-") for seed in SEEDS}
    for path in submitted.rglob("*"):
        assert path.is_dir() or str(good.parents[2]).encode() not in path.read_bytes(), path


def test_the_deleted_worst_seed_is_asked_for(cli: Cli, good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "seeds"))
    worst = summary(good)["statistics"]["bpb sliding"]["worst_seed"]
    shutil.rmtree(folder / f"seed-{worst}")
    kept = [folder / f"seed-{seed}" for seed in SEEDS if seed != str(worst)]
    message = cli.error("submission", folder, "--out", tmp_path / "out")
    assert f"seed {worst} has no score here (missing: was requested)" in message
    (folder / "seeds.json").unlink()
    assert message == cli.error("submission", *kept, "--out", tmp_path / "out")


def test_a_submission_is_verified(cli: Cli, source: Path, submitted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(submitted, tmp_path / "submission"))
    arguments = ("verify", folder, "--source", source, "--out", tmp_path / "again")
    result = cli(*arguments)
    assert result.code == 0, result.stdout + result.stderr
    assert "the rerun made the same artifact" in result.stdout
    facts = json.loads((folder / "verify.json").read_text())["facts"]
    assert {f"files, seed {seed}" for seed in SEEDS} < {fact["name"] for fact in facts}
    assert facts[-1]["name"] == "audit of the rerun"
    with (folder / "train_gpt.py").open("ab") as file:
        file.write(b"\n" * 1_000)
    said = json.loads((folder / "submission.json").read_text())
    (folder / "submission.json").write_text(json.dumps({**said, "val_bpb": 0.5}))
    chosen = said["model_of_seed"]
    names = f"files, seed {chosen}, submission: val_bpb, submission: all entries"
    assert f"is not verified: {names}" in cli(*arguments).stderr


@pytest.fixture(scope="module")
def without_paramgolf(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PATH whose isolated `python` has all libraries except paramgolf."""
    folder = tmp_path_factory.mktemp("path")
    code = (
        f"import runpy, sys; sys.path.append({str(libraries)!r}); del sys.argv[0]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S -c {shlex.quote(code)} "$@"\n')
    python.chmod(0o755)
    return folder


def test_the_commands_of_its_readme_repeat_the_run(
    source: Path, submitted: Path, without_paramgolf: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(submitted, tmp_path / "submission"))
    shutil.copytree(source, folder / "data")
    text = (folder / "README.md").read_text()
    lines = re.findall(r"^python train_gpt.py .*$", text, re.MULTILINE)
    assert len(lines) == 2
    (folder / "probe.py").write_text("import paramgolf\n")

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        # Variables that may select a kernel (OPENBLAS_CORETYPE) are those of the first run.
        environment = command.ENVIRONMENT | {"PATH": f"{without_paramgolf}:/usr/bin:/bin"}
        return subprocess.run(
            ["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=command.TIMEOUT,
        )  # fmt: skip

    assert "No module named 'paramgolf'" in shell("python probe.py").stderr
    run = shell(lines[0])
    assert (run.returncode, run.stderr) == (0, "")
    assert "reproduced: yes (same artifact, SHA-256 " in run.stdout
    said = json.loads((folder / "submission.json").read_text())
    mine = said["seeds"][str(said["model_of_seed"])]
    again = read_results(folder / "again")
    assert again["stages"]["sliding"]["bpb"] == mine["val_bpb"]
    assert again["bytes"]["total"] == mine["bytes_total"]
    score = shell(lines[1])
    assert (score.returncode, score.stderr) == (0, "")
    words = " ".join(score.stdout.split())
    assert f"bpb {mine['val_bpb']} " in words
    assert f"label {mine['label']}" in words
    assert f"The expected score is {mine['val_bpb']:.6f} BPB (sliding)." in text


def test_the_seeds_command_of_its_readme_repeats_a_seed(
    cli: Cli, source: Path, submitted: Path, tmp_path: Path
) -> None:
    """The last command of the README, reduced to the first of its seeds."""
    folder = Path(shutil.copytree(submitted, tmp_path / "submission"))
    shutil.copytree(source, folder / "data")
    text = (folder / "README.md").read_text()
    line = re.search(r"^paramgolf (seeds tiny .*)$", text, re.MULTILINE)
    assert line is not None
    arguments = shlex.split(line[1])
    assert arguments[3:6] == list(SEEDS)
    del arguments[4:6]
    cli.output(*arguments, cwd=folder)
    again = read_results(folder / "runs" / "seeds-tiny" / "seed-1")
    said = json.loads((folder / "submission.json").read_text())
    assert again["stages"]["sliding"]["bpb"] == said["seeds"]["1"]["val_bpb"]
