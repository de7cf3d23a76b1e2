"""The stages on several ranks, and whole runs under torchrun."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paramgolf.config import RunConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.runtime.device import named_generator, select_runtime
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.ranks import Ranks
from paramgolf.runtime.rundir import RunDir
from paramgolf.stages import adapt, pack, train
from paramgolf.stages.job import Job
from tests.e2e.conftest import FinishedRun
from tests.helpers import FakeClock
from tests.processes import on_ranks

CPU = torch.device("cpu")


def job(ranks: Ranks, path: Path, config: RunConfig) -> Job:
    return Job(config, RunDir(path, keeps_events=ranks.main), select_runtime("cpu", ranks))


def adapted(ranks: Ranks, path: Path, config: RunConfig) -> float:
    return adapt.run(job(ranks, path, config))["epochs"][0]["train_loss_nats"]


def adapted_serially(path: Path, config: RunConfig, size: int) -> tuple[list[Tensor], float]:
    """Federated averaging as it is defined, one rank after the other.

    Gives the trainable weights and the mean loss of the first epoch.
    """
    chunks = adaptation_chunks(path, config)
    order = layer_order(config.model, recurrent=True)
    models, optimizers = [], []
    for _ in range(size):
        model = GPT(config.model)
        model.load_state_dict(load_file(path / "checkpoints" / "ema.safetensors"))
        models.append(model)
        optimizers.append(torch.optim.AdamW(trainable(model, config), weight_decay=0, fused=True))
    first_losses = []
    for epoch in range(config.adapt.epochs):
        share = 0.5 * (1 + math.cos(math.pi * epoch / config.adapt.epochs))
        lr = config.adapt.final_lr + (config.adapt.lr - config.adapt.final_lr) * share
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.param_groups[0]["lr"] = lr
            own = chunks[rank::size]
            generator = named_generator(config.seed, f"adapt:{epoch}:{rank}")
            for index in torch.randperm(len(own), generator=generator).tolist():
                model.zero_grad()
                loss = model.mean_nats(own[index], order)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trainable(model, config), config.adapt.grad_clip)
                optimizer.step()
                if epoch == 0:
                    first_losses.append(loss.item())
        with torch.no_grad():
            for copies in zip(*(trainable(model, config) for model in models), strict=True):
                total = copies[0].clone()
                for other in copies[1:]:
                    total += other
                for parameter in copies:
                    parameter.copy_(total / size)
    weights = [parameter.detach() for parameter in trainable(models[0], config)]
    return weights, math.fsum(first_losses) / len(first_losses)


def adaptation_chunks(path: Path, config: RunConfig) -> Sequence[Tensor]:
    shards = sorted((path / "data").glob("text_adapt_*.bin"))
    stream = torch.cat([tokens_of_shard(shard) for shard in shards])
    length = config.model.seq_len
    count = (len(stream) - 1) // length
    sequences = [stream[i * length : (i + 1) * length + 1] for i in range(count)]
    return torch.stack(sequences).split(config.adapt.chunk_tokens // length)


def tokens_of_shard(path: Path) -> Tensor:
    content = torch.frombuffer(bytearray(path.read_bytes()[1024:]), dtype=torch.uint16)
    return content.int()


def trainable(model: GPT, config: RunConfig) -> list[Tensor]:
    frozen = tuple(f"blocks.{layer}." for layer in range(config.adapt.frozen_blocks))
    return [
        p for name, p in model.named_parameters() if not name.startswith(("embedding", *frozen))
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_adaptation_is_federated_averaging_bit_for_bit(
    mini_run: FinishedRun, tmp_path: Path, size: int
) -> None:
    """The number of chunks is no multiple of the number of ranks."""
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    _, _, config = RunDir.open(run)
    config = replace(config, adapt=replace(config.adapt, chunk_tokens=64 * 19, epochs=3))
    assert len(adaptation_chunks(run, config)) == 5
    (run / "checkpoints" / "adapted.safetensors").unlink()
    losses = on_ranks(size, adapted, run, config)
    torch.set_num_threads(1)
    expected, loss = adapted_serially(run, config, size)
    model = GPT(config.model)
    model.load_state_dict(load_file(run / "checkpoints" / "adapted.safetensors"))
    for parameter, wanted in zip(trainable(model, config), expected, strict=True):
        assert torch.equal(parameter, wanted)
    assert losses == [pytest.approx(loss, rel=1e-6)] * size


def hessians(ranks: Ranks, path: Path, config: RunConfig) -> dict[str, Tensor]:
    weights, _ = read_tensors(path / "checkpoints" / "adapted.safetensors")
    return pack._Calibration(job(ranks, path, config), weights).hessians()


def test_hessians_add_up_over_ranks(mini_run: FinishedRun) -> None:
    _, _, config = RunDir.open(mini_run.path)
    config = replace(config, pack=replace(config.pack, calibration_batches=5))
    (expected,) = on_ranks(1, hessians, mini_run.path, config)
    for got in on_ranks(2, hessians, mini_run.path, config):
        assert got.keys() == expected.keys()
        for name, hessian in expected.items():
            scale = float(hessian.abs().max())
            torch.testing.assert_close(got[name], hessian, rtol=0, atol=1e-6 * scale, msg=name)


# Training by the clock


def trained_by_the_clock(ranks: Ranks, path: Path, config: RunConfig) -> int:
    train.time = FakeClock(tick=0.05 if ranks.main else 0.2)
    return train.run(job(ranks, path, config)).get("steps", 0)


def test_one_clock_ends_the_training_of_all_ranks(mini_run: FinishedRun, tmp_path: Path) -> None:
    shutil.copytree(mini_run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").mkdir()
    _, _, config = RunDir.open(tmp_path / "run")
    by_the_clock = replace(
        config.train, max_steps=0, max_seconds=1.5, reserve_seconds=0, checkpoint_seconds=0
    )
    config = replace(config, train=by_the_clock)
    # If the ranks ended at different steps, they would wait for each other without end.
    steps, *_ = on_ranks(2, trained_by_the_clock, tmp_path / "run", config)
    assert steps > 6
