"""Runs that stop after a stage, and ablations that compare the score of that stage."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify.books import books
from tests.e2e import command
from tests.e2e.command import Cli, one_line_error
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import (
    read_results,
    require_same_artifact,
    stages_started,
    table_rows,
    without_times,
)

pytestmark = pytest.mark.slow

CELLS = (
    ("train.matrix-lr=0.03",),
    (),
    ("model.num-layers=5", "train.ema-share=0.6"),
    ("train.max-steps=4",),
)
"""Variants of a mini run. The third has another model: nothing of its shape may be left behind."""


def cell_options() -> list[str]:
    return [word for cell in CELLS for word in ("--cell", *cell)]


def train_result(run: Path) -> dict[str, Any]:
    return json.loads((run / "stages" / "train.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "checkpoints" / "ema.safetensors")[0]


def require_books(path: Path) -> None:
    run, _, config = RunDir.open(path)
    found = books(run, config, read_results(path))
    assert not [check for check in found if check.outcome == "FAIL"]


@pytest.fixture(scope="module")
def trained(
    cli: Cli, options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run that has stopped after training, and what it printed; do not write to its folder."""
    path = tmp_path_factory.mktemp("trained") / "run"
    return path, cli.output("run", "tiny", *options, "--until", "train", "--out", path)


def test_a_run_stops_after_a_stage_and_says_how_to_go_on(trained: tuple[Path, str]) -> None:
    path, printed = trained
    assert stages_started(path) == ["prepare", "train"]
    assert not (path / "results.json").exists()
    score = train_result(path)["scores"]["ema"]
    assert table_rows(printed) == [
        ["after EMA", f"{score['bpb']:.4f}", f"{score['loss_nats']:.4f}", f"{score['tokens']:,}",
         f"{score['bytes']:,}", "held-out"]
    ]  # fmt: skip
    assert "stopped after train: no results.json yet" in printed
    assert printed.rstrip().endswith(f"paramgolf run --resume {path}")


def test_other_commands_refuse_it_in_one_line(
    trained: tuple[Path, str], cli: Cli, tmp_path: Path
) -> None:
    path, _ = trained
    refused = {
        ("audit", path): "is not finished",
        ("report", path): "is not finished",
        ("compare", path, path): "has no finished run",
        ("prove", path): "is not packed yet",
        ("generate", path, "--prompt", "a"): "is not packed yet",
        ("bundle", path, "--out", tmp_path / "bundle"): "",
        ("submission", path, "--out", tmp_path / "submission"): "",
        ("verify", path): "",
    }
    for arguments, words in refused.items():
        assert words in one_line_error(cli(*arguments)), arguments
    assert "before adapt" in cli.output("list", path.parent)


def test_stopping_after_every_stage_ends_with_the_same_result(
    trained: tuple[Path, str], mini_run: FinishedRun, cli: Cli, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    for stage, following in (("adapt", "pack"), ("pack", "score")):
        printed = cli.output("run", "--resume", run, "--until", stage)
        assert f"stopped after {stage}" in printed
        assert not (run / "results.json").exists()
        assert not (run / "stages" / f"{following}.json").exists()
    assert re.search(r"size +[\d,]+ of 88,000 bytes", printed)
    printed = cli.output("run", "--resume", run)
    assert table_rows(printed) == table_rows(mini_run.stdout)[: len(table_rows(printed))]
    require_same_artifact(run, mini_run.path)
    assert without_times(read_results(run)) == without_times(read_results(mini_run.path))
    require_books(run)
    # Asked for less than it has, a finished run stays as it is.
    before = read_results(run)
    cli.output("run", "--resume", run, "--until", "train")
    assert read_results(run) == before


def test_unknown_stages_and_options(cli: Cli, options: list[str], mini_run: FinishedRun) -> None:
    result = cli("run", "tiny", *options, "--until", "trian")
    assert result.code == 2
    assert "--until" in result.stderr + result.stdout
    assert "--log and --until" in cli.error("run", "--resume", mini_run.path, "--out", "x", code=2)


@pytest.fixture(scope="module")
def swept(cli: Cli, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "out"
    printed = cli.output(
        "ablate", "tiny", *options, *cell_options(), "--until", "train", "--out", out
    )
    cells = json.loads((out / "ablation.json").read_text())["cells"]
    rows = table_rows(printed)
    assert len(rows) == len(cells) == len(CELLS)
    for row, cell in zip(rows, cells, strict=True):
        run = out / cell["folder"] / "seed-1337"
        trained = train_result(run)
        assert cell["stage"] == "ema"
        assert cell["bpb"]["mean"] == trained["scores"]["ema"]["bpb"]
        assert cell["steps"] == trained["steps"]
        assert cell["tokens_per_second"] == trained["tokens_per_second"]["train"]
        assert row[:4] == [str(value) for value in cell["values"].values()]
        assert row[4] == f"{cell['bpb']['mean']:.4f}"
        assert row[5:7] == [f"{cell['steps']:.0f}", f"{cell['tokens_per_second']:,.0f}"]
    assert [cell["steps"] for cell in cells] == [6, 6, 6, 4]
    return out


def test_every_cell_is_as_if_it_were_alone(
    swept: Path, cli: Cli, options: list[str], tmp_path: Path
) -> None:
    """Bit for bit on the CPU: cells share a process and a prepared text, and nothing else."""
    cells = json.loads((swept / "ablation.json").read_text())["cells"]
    for number, (settings, cell) in enumerate(zip(CELLS, cells, strict=True)):
        ours, alone = swept / cell["folder"] / "seed-1337", tmp_path / str(number)
        changes = [word for setting in settings for word in f"--{setting}".split("=")]
        cli.output("run", "tiny", *options, *changes, "--until", "train", "--out", alone)
        found, expected = weights(ours), weights(alone)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), (cell["folder"], name)
        assert train_result(ours)["scores"] == train_result(alone)["scores"]
        prepared = json.loads((ours / "stages" / "prepare.json").read_text())
        assert ("taken_from" in prepared) == (number > 0)
        assert (ours / "tokenizer.model").read_bytes() == (alone / "tokenizer.model").read_bytes()


def test_a_cell_can_be_completed(
    swept: Path, mini_run: FinishedRun, cli: Cli, tmp_path: Path
) -> None:
    """Its text was taken over, its weights are its own."""
    run = Path(shutil.copytree(swept / "unchanged" / "seed-1337", tmp_path / "run"))
    cli.output("run", "--resume", run)
    require_same_artifact(run, mini_run.path)
    assert without_times(read_results(run)) == without_times(read_results(mini_run.path))
    assert cli("audit", run, "--positions", "2").code == 0


def test_called_again_it_repeats_nothing_and_adds_cells(
    swept: Path, cli: Cli, options: list[str], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(swept, tmp_path / "out"))
    before = {path: path.read_bytes() for path in out.rglob("seed-1337/events.jsonl")}
    command = ("ablate", "tiny", *options, *cell_options(), "--until", "train", "--out", out)
    rows = table_rows(cli.output(*command, "--cell", "model.width=64"))
    assert len(rows) == len(CELLS) + 1
    assert {path: path.read_bytes() for path in before} == before
    new = out / "model.width=64" / "seed-1337"
    assert "taken_from" in json.loads((new / "stages" / "prepare.json").read_text())


def test_an_interrupted_sweep_continues(swept: Path, options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("ablate", "tiny", *options, *cell_options(), "--until", "train", "--out", out)
    process = command.start(*arguments)
    second = out / "unchanged" / "seed-1337"
    command.wait_until((second / "config.json").exists, process)
    process.send_signal(signal.SIGTERM)
    ended = command.finish(process)
    if ended.code != 0:  # else it was too fast to be stopped
        assert "the same command resumes the runs" in one_line_error(ended, 75)
        cells = json.loads((out / "ablation.json").read_text())["cells"]
        assert cells[0]["bpb"] is not None
    assert command.run(*arguments).code == 0
    ours, theirs = (
        json.loads((folder / "ablation.json").read_text())["cells"] for folder in (out, swept)
    )
    assert [cell["bpb"] for cell in ours] == [cell["bpb"] for cell in theirs]


def test_a_sweep_takes_text_and_weights_of_another_run_over(
    mini_run: FinishedRun, cli: Cli, tmp_path: Path
) -> None:
    """Only the cell that trains anything else trains."""
    vary, out = "train.max-steps=6,4", tmp_path / "out"
    printed = cli.output(
        "ablate", "tiny", "--device", "cpu", "--from", mini_run.path, "--vary", vary,
        "--until", "train", "--out", out,
    )  # fmt: skip
    rows = {row[0]: row for row in table_rows(printed)}
    first, second = (out / f"train.max_steps={steps}" / "seed-1337" for steps in (6, 4))
    assert train_result(first)["taken_from"] == str(mini_run.path)
    assert "taken_from" not in train_result(second)
    assert rows["6"][1] == f"{read_results(mini_run.path)['stages']['ema']['bpb']:.4f}"
    assert "train.max_steps" in (out / "ablation.svg").read_text()


def test_a_grid_and_a_list_exclude_each_other(cli: Cli, options: list[str]) -> None:
    both = ("--vary", "train.max-steps=1,2", "--cell", "train.max-steps=3")
    assert "not both" in cli.error("ablate", "tiny", *options, *both, code=2)
