"""A disk that fills up: the error is one line, nothing is damaged, and the run can be resumed."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors
import torch

from paramgolf.compress.artifact import decode
from paramgolf.data.shards import open_shard
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.rundir import RunDir
from tests.e2e import command
from tests.e2e.command import Cli, one_line_error
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import events, read_results, without_times

STAGES = ("prepare", "train", "adapt", "pack", "score")


def check_whole(run: Path) -> None:
    """Every file except temporary ones is complete."""
    for path in (path for path in run.rglob("*") if path.is_file()):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    file.get_tensor(name)
        elif path.name == "train_gpt.py":
            ast.parse(path.read_bytes())
        elif path.name == "model.bin":
            decode(path.read_bytes())
        elif path.suffix == ".bin":
            open_shard(path)
        else:
            assert path.name in ("tokenizer.model", "events.jsonl"), path
    assert not list(run.rglob(".*.tmp"))


def check_equal(run: Path, undisturbed: FinishedRun) -> None:
    ours, theirs = read_results(run), read_results(undisturbed.path)
    assert without_times(ours) == without_times(theirs)
    for name in ("model.bin", "provenance.safetensors"):
        assert (run / name).read_bytes() == (undisturbed.path / name).read_bytes()


@pytest.mark.parametrize(
    ("victim", "max_file_bytes"),
    [
        ("training.safetensors", 400_000),
        ("ema.safetensors", 120_000),
        ("text_train_000000.bin", 60_000),
        ("tokenizer.model", 5_000),
        ("config.json", 1_000),
    ],
)
def test_disk_fills_up(
    cli: Cli,
    mini_run: FinishedRun,
    options: list[str],
    tmp_path: Path,
    victim: str,
    max_file_bytes: int,
) -> None:
    """The maximum size of a file determines which file is the first that cannot be written."""
    run = tmp_path / "run"
    seconds = "0.001" if victim == "training.safetensors" else "0"
    start = ("run", "tiny", *options, "--train.checkpoint-seconds", seconds, "--out", run)
    message = one_line_error(cli(*start, max_file_bytes=max_file_bytes))
    assert "cannot write" in message
    assert f"{victim}: File too large" in message
    assert not list(run.rglob(victim))
    check_whole(run)
    # There is space again.
    again = ("run", "--resume", run) if (run / "config.json").exists() else start
    result = cli(*again)
    assert (result.code, result.stderr) == (0, ""), result.stderr
    # Not the packed model: its size depends on that of the code file, which names every option.
    ours, theirs = (read_tensors(RunDir(path).adapted)[0] for path in (run, mini_run.path))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("stage", STAGES)
def test_disk_fills_up_in_any_stage(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path, stage: str
) -> None:
    """The files of earlier stages do not change."""
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    for later in STAGES[STAGES.index(stage) :]:
        (run / "stages" / f"{later}.json").unlink()
    (run / "results.json").unlink()
    names = [f"stages/{earlier}.json" for earlier in STAGES[: STAGES.index(stage)]]
    names += ["config.json", "tokenizer.model", *(f"data/{p.name}" for p in run.glob("data/*"))]
    if stage in ("prepare", "train"):
        (run / "checkpoints" / "ema.safetensors").unlink()
    else:
        names.append("checkpoints/ema.safetensors")
    before = {name: (run / name).read_bytes() for name in names}
    # Room for a few more events, but for no file of a stage (in the last stage: for no result).
    room = (run / "events.jsonl").stat().st_size + 700
    if stage == "score":
        room = 100
        (run / "events.jsonl").unlink()
    result = cli("run", "--resume", run, max_file_bytes=room)
    message = one_line_error(result)
    assert "File too large" in message
    assert str(run) in message
    assert not (run / "stages" / f"{stage}.json").exists()
    assert before == {name: (run / name).read_bytes() for name in names}
    check_whole(run)
    result = cli("run", "--resume", run)
    assert (result.code, result.stderr) == (0, ""), result.stderr
    check_equal(run, mini_run)


def test_no_space_for_events(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    """The only file that is written line by line is named in the error, too."""
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    for name in ("pack", "score"):
        (run / "stages" / f"{name}.json").unlink()
    size = (run / "events.jsonl").stat().st_size
    message = one_line_error(cli("run", "--resume", run, max_file_bytes=size + 10))
    assert "events.jsonl" in message
    # An incomplete line does not damage the lines that follow.
    result = cli("run", "--resume", run)
    assert (result.code, result.stderr) == (0, "")
    check_equal(run, mini_run)
    assert events(run)[-1]["event"] == "run_finished"


def test_no_space_for_the_console(mini_run: FinishedRun) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command.command("run", "--resume", mini_run.path),
            env=command.ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=command.TIMEOUT,
        )
    assert done.returncode == 1
    message = done.stderr.decode()
    assert message.count("\n") == 1
    assert "No space left on device" in message
