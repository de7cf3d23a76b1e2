"""Single stages in this process: the seconds and tokens that they report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from paramgolf.optim.trainer import Trainer
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import read_tensors, write_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.stages import adapt, train
from paramgolf.stages.job import Job

CPU = select_runtime("cpu")


def test_tokens_per_second_of_adaptation_count_all_epochs(run_copy: Path) -> None:
    run, _, config = RunDir.open(run_copy)
    job = Job(config, run, CPU)
    rate = adapt.run(job)["tokens_per_second"]["adapt_steps"]
    seq_len = config.model.seq_len
    epoch_tokens = (len(job.text.stream("adapt", run.data)) - 1) // seq_len * seq_len
    seconds = job.ledger.seconds()
    assert rate == pytest.approx(config.adapt.epochs * epoch_tokens / seconds["adapt: steps"])


def test_a_resumed_training_reads_its_files_in_a_phase(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds outside any phase would fail the audit."""
    run, _, config = RunDir.open(run_copy)
    run.trained.unlink()
    write_tensors(
        run.path / "checkpoints" / "training.safetensors",
        Trainer(config, CPU).state_tensors(),
        step=2, elapsed_seconds=1.0, loss_nats=6.0,
    )  # fmt: skip
    read: list[str] = []

    def read_slowly(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        read.append(path.name)
        time.sleep(0.2)
        return read_tensors(path)

    monkeypatch.setattr(train, "read_tensors", read_slowly)
    job = Job(config, run, CPU)
    result = train.run(job)
    assert read == ["training.safetensors", "ema.safetensors"]
    assert job.ledger.seconds()["train: read checkpoint"] >= 0.4
    assert result["steps"] == config.train.max_steps
    assert job.ledger.seconds()["train: steps"] == result["seconds"] > 1.0
