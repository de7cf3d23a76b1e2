"""What a run starts from: a recipe, a configuration file, another run; and starts that fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paramgolf.checked import from_json
from paramgolf.config import RunConfig
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import events, read_results, stages_started


def config_of(run: Path) -> RunConfig:
    values = json.loads((run / "config.json").read_text())
    values.pop("recipe")
    return from_json(RunConfig, values)


def test_from_inherits_what_the_weights_depend_on(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path
) -> None:
    """Nothing of the mini run's model, text or training is named again."""
    out = tmp_path / "branch"
    branch = ("--from", mini_run.path, "--adapt.text", "none", "--device", "cpu")
    coarse = ("--pack.calibration-batches", "2", "--pack.budget-bytes", "88000")
    cli.output("run", "tiny", *branch, *coarse, "--score.batch-tokens", "4096", "--out", out)
    ours, theirs = config_of(out), config_of(mini_run.path)
    for key in ("seed", "data", "model", "train"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.adapt.text == "none"
    assert ours.score.stride == 64  # of the recipe, not of the other run
    assert stages_started(out) == ["prepare", "train", "adapt", "pack", "score"]


def test_from_with_another_seed_is_refused_before_anything_is_written(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path
) -> None:
    message = cli.error(
        "run", "tiny", "--from", mini_run.path, "--seed", "7", "--out", tmp_path / "new", code=2
    )
    assert "seed differs" in message
    assert not (tmp_path / "new").exists()


def test_a_configuration_file_is_a_recipe(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    file, out = mini_run.path / "config.json", tmp_path / "again"
    cli.output("run", "--config", file, "--score.stride", "32", "--out", out)
    ours, theirs = config_of(out), config_of(mini_run.path)
    assert ours.score.stride == 32  # the command line wins
    assert (ours.train, ours.model, ours.data) == (theirs.train, theirs.model, theirs.data)
    assert json.loads((out / "config.json").read_text())["recipe"] == "tiny"
    plain, before = (read_results(run)["stages"]["ema"] for run in (out, mini_run.path))
    assert plain == before


def test_a_part_of_a_configuration_changes_its_recipe(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"recipe": "tiny", "pack": {"budget_bytes": 1000}}))
    message = cli.error("run", "--config", file, "--out", tmp_path / "out", code=2)
    assert "1,000" in message  # read from the file, and too small
    file.write_text(json.dumps({"recipe": "tiny", "pack": {"budget_byte": 1000}}))
    assert "budget_bytes" in cli.error("run", "--config", file, code=2)
    file.write_text("[]")
    assert "expected a JSON object" in cli.error("run", "--config", file, code=2)
    assert "not both" in cli.error("run", "tiny", "--config", file, code=2)
    assert "missing.json" in cli.error("run", "--config", tmp_path / "missing.json", code=1)


@pytest.mark.parametrize("command", ["run", "seeds", "ablate"])
def test_a_recipe_without_its_text_names_the_command_that_gets_it(
    cli: Cli, command: str, tmp_path: Path
) -> None:
    message = cli.error(command, "record", cwd=tmp_path, code=1)
    assert "`paramgolf data fetch fineweb --variant sp8192 --train-shards 0`" in message
    message = cli.error(command, "h200", cwd=tmp_path, code=1)
    assert "train.jsonl.xz" in message
    assert "paramgolf data build" in message
    assert not list(tmp_path.iterdir())


def test_a_named_source_brings_its_tokenizer(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path
) -> None:
    """The recipe's own tokenizer, corpus/sp8192.model, is not asked for."""
    folder = Path(shutil.copytree(mini_run.path / "data", tmp_path / "data"))
    shutil.copy(mini_run.path / "tokenizer.model", folder)
    options = ("--data.source", folder, "--data.val-targets", "0", "--device", "cpu")
    small = ("--train.micro-batch-tokens", "2048", "--train.batch-tokens", "2048")
    message = cli.error("run", "h200", *options, *small, cwd=tmp_path, code=2)
    assert "--model.vocab-size 512" in message
    assert "sp8192" not in message
    printed = cli.output(
        "run", "h200", *options, *small, "--model.vocab-size", "512", "--dry-run",
        cwd=tmp_path,
    )  # fmt: skip
    assert "nothing was written" in printed
    assert not (tmp_path / "runs").exists()


def test_a_start_that_fails_leaves_its_name_free(
    cli: Cli, options: list[str], source: Path, tmp_path: Path
) -> None:
    """Damage that only reading the whole text finds."""
    broken, out = Path(shutil.copytree(source, tmp_path / "broken")), tmp_path / "run"
    with (broken / "train.jsonl").open("a") as file:
        file.write('{"no text": 1}\n')
    assert "train.jsonl, line" in cli.error(
        "run", "tiny", *options, "--data.source", broken, "--out", out, code=1
    )
    assert not out.exists()
    nowhere = tmp_path / "nowhere"
    assert "nowhere' is not a directory" in cli.error(
        "run", "tiny", *options, "--data.source", nowhere, "--out", out, code=1
    )
    assert not out.exists()
    cli.output("run", "tiny", *options, "--out", out)


def test_a_dry_run_estimates_and_writes_nothing(
    cli: Cli, options: list[str], tmp_path: Path
) -> None:
    printed = cli.output("run", "tiny", *options, "--dry-run", cwd=tmp_path)
    names = [line.split()[0] for line in printed.splitlines()]
    assert {"text", "bytes", "memory", "disk", "time"} <= set(names)
    assert not list(tmp_path.iterdir())


def test_warnings_are_printed_and_the_run_goes_on(
    cli: Cli, options: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    printed = cli.output("run", "tiny", *options, "--data.val-targets", "300", "--out", out)
    assert "warning: scores will have a noise" in printed
    assert "BPB" in printed.split("warning: scores")[1].splitlines()[0]
    assert events(out)[-1]["event"] == "run_finished"
