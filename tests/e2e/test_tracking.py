"""TensorBoard and Weights & Biases (offline) receive the figures of a run's events."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from paramgolf.pipeline.tracking import figures, guarded
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.rundir import RunDir
from tests.e2e import command
from tests.e2e.command import Cli, one_line_error
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import events, mini_config, read_results


def expected_figures(run: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(run):
        values = {name: value for name, value in event.items() if name not in ("time", "event")}
        for name, value, step in figures(event["event"], values):
            found.setdefault(name, []).append((step, value))
    return found


def test_figures_of_a_run(mini_run: FinishedRun) -> None:
    found = expected_figures(mini_run.path)
    stages = read_results(mini_run.path)["stages"]
    for stage, score in stages.items():
        assert found[f"bpb/{stage} ({score['label']})"] == [(0, score["bpb"])]
    losses = [e["loss_nats"] for e in events(mini_run.path) if e["event"] == "train"]
    assert [value for _, value in found["train/loss_nats"]] == losses
    assert [step for step, _ in found["adapt/bpb"]] == [1, 2]


@pytest.mark.slow
def test_tensorboard_has_the_figures(options: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    result = command.run("run", "tiny", *options, "--out", run, "--log", "tensorboard")
    assert (result.code, result.stderr) == (0, "")
    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    expected = expected_figures(run)
    assert sorted(read.Tags()["scalars"]) == sorted(expected)
    for tag, values in expected.items():
        scalars = [(s.step, s.value) for s in read.Scalars(tag)]
        assert scalars == [(step, pytest.approx(value, rel=1e-6)) for step, value in values]


@pytest.mark.slow
def test_wandb_offline_has_the_summary(options: list[str], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    result = command.run(
        "run", "tiny", *options, "--out", run, "--log", "wandb", env={"WANDB_MODE": "offline"}
    )
    assert result.code == 0, result.stderr
    (kept,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    score = read_results(run)["stages"]["sliding"]
    assert f"bpb/sliding ({score['label']})".encode() in content
    assert json.dumps(score["bpb"]).encode() in content


def test_a_failing_log_is_reported_and_closed(source: Path, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", "tiny", mini_config(source))
    told: list[str] = []

    def listen(kind: str, _: dict[str, Any]) -> None:
        told.append(kind)
        if kind == "second":
            raise ConnectionError("gone")

    console = io.StringIO()
    run.listener = guarded(run, lambda _: listen, Reporter(console))
    for kind in ("first", "second", "third"):
        run.event(kind)
    assert told == ["first", "second"]
    kinds = [event["event"] for event in events(run.path)]
    assert kinds == ["first", "second", "log_failed", "third"]
    assert events(run.path)[2]["reason"] == "ConnectionError: gone"
    assert "continues without it: ConnectionError: gone" in console.getvalue()


def test_an_unknown_log(cli: Cli, tmp_path: Path) -> None:
    result = cli("run", "tiny", "--log", "paper", cwd=tmp_path)
    assert result.code == 2
    assert "'none', 'wandb', 'tensorboard'" in " ".join(result.stderr.split())
    message = one_line_error(cli("run", "--resume", "x", "--seed", "3", cwd=tmp_path), code=2)
    assert "no other option but --log" in message
