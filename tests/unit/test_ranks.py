"""What several ranks compute together is what one process computes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paramgolf import runtime
from paramgolf.compress.quantize import Quantizer
from paramgolf.config import RunConfig, ScoreFirstConfig
from paramgolf.model.order import layer_order
from paramgolf.model.roles import input_of
from paramgolf.optim.exchange import GradientExchange
from paramgolf.optim.muon import MuonEqR
from paramgolf.optim.trainer import Trainer
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.ranks import Ranks, wait
from paramgolf.runtime.watch import Watch
from paramgolf.scoring.score_first import score_first_losses
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import windows_of
from tests.helpers import random_model, random_tokens, small_config, small_run_config
from tests.processes import on_ranks, outcomes_on_ranks

SIZES = [1, 2, 3]


# Collectives


def collectives(ranks: Ranks) -> dict[str, Any]:
    own = torch.arange(3.0) + 10 * ranks.rank
    started = own.clone()
    wait(ranks.start_sum_(started))
    gathered, work = ranks.start_gather(own)
    wait(work)
    return {
        "sum": ranks.sum_(own.clone()).tolist(),
        "started": started.tolist(),
        "gathered": gathered.tolist(),
        "mean": ranks.mean_in_order(own).tolist(),
        "agreed": ranks.agree(ranks.rank, True),
        "from main": ranks.from_main({"rank": ranks.rank}),
        "to main": ranks.gather_to_main(ranks.rank * 2),
        "main": ranks.main,
    }


@pytest.mark.parametrize("size", SIZES)
def test_collectives(size: int) -> None:
    values = np.arange(3.0) + 10 * np.arange(size)[:, None]
    for rank, got in enumerate(on_ranks(size, collectives)):
        assert got["sum"] == got["started"] == values.sum(0).tolist()
        assert got["gathered"] == values.tolist()
        assert got["mean"] == pytest.approx(values.mean(0).tolist())
        assert got["agreed"] == [sum(range(size)), size]
        assert got["from main"] == {"rank": 0}
        assert got["to main"] == ([2 * r for r in range(size)] if rank == 0 else [])
        assert got["main"] == (rank == 0)


_FLOATS = [1e8, -1e8, 3.0]


def mean_of_floats(ranks: Ranks) -> list[float]:
    return ranks.mean_in_order(torch.tensor([_FLOATS[ranks.rank]])).tolist()


def test_mean_is_added_up_in_the_order_of_the_ranks() -> None:
    first, second, third = (np.float32(value) for value in _FLOATS)
    assert second + third + first == 0
    assert on_ranks(3, mean_of_floats) == [[(first + second + third) / np.float32(3)]] * 3


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_shares_cover_everything_once(size: int) -> None:
    ranks = [Ranks(rank, size) for rank in range(size)]
    for count in range(20):
        spans = [list(r.span(count)) for r in ranks]
        assert [i for share in spans for i in share] == list(range(count))
        mine = [list(r.mine(range(count))) for r in ranks]
        assert sorted(i for share in mine for i in share) == list(range(count))
        for shares in (spans, mine):
            lengths = [len(share) for share in shares]
            assert max(lengths) - min(lengths) <= 1


# Ranks that hang


COLLECTIVES: dict[str, Callable[[Ranks], object]] = {
    "sum": lambda ranks: ranks.sum_(torch.ones(1)),
    "gather": lambda ranks: ranks.mean_in_order(torch.ones(1)),
    "agreement": lambda ranks: ranks.agree(1),
    "broadcast from rank 0": lambda ranks: ranks.from_main(1),
    "gather to rank 0": lambda ranks: ranks.gather_to_main(1),
    "barrier": lambda ranks: ranks.barrier(),
}


def watched(ranks: Ranks, logs: Path) -> Watch:
    """Watch with limits of a second."""
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    runtime.ranks.PARALLEL_SECONDS = 1.0
    runtime.watch._REPORT_SECONDS = 0.1
    runtime.watch._GRACE_SECONDS = 2.0
    watch = Watch(ranks)
    watch.log_to(logs)
    return watch


def with_a_missing_rank(ranks: Ranks, logs: Path, missing: int, name: str, stopped: bool) -> None:
    watched(ranks, logs)
    ranks.barrier()
    if ranks.rank == missing and stopped:
        subprocess.Popen(["sh", "-c", f"sleep 6; kill -9 {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    if ranks.rank == missing:
        time.sleep(60)
    COLLECTIVES[name](ranks)
    ranks.barrier()


@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_rank_that_hangs_is_named(name: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    outcomes = outcomes_on_ranks(2, with_a_missing_rank, tmp_path, 1, name, False)
    assert time.monotonic() - begin < 30
    assert [outcome.error for outcome in outcomes] == ["died"] * 2
    logs = [(tmp_path / "logs" / f"rank{rank}.log").read_text() for rank in range(2)]
    for log in logs:
        assert "rank 1 failed: it did not enter collective " in log
        assert f" ({name}) within 1 s of rank 0" in log
    assert "it hangs here:" in logs[1]
    assert "time.sleep(60)" in logs[1]


@pytest.mark.parametrize(("missing", "stopped"), [(0, False), (0, True), (2, True)])
def test_any_rank_that_hangs_is_named(missing: int, stopped: bool, tmp_path: Path) -> None:
    """Also rank 0, and one whose whole process is stopped, so that it cannot tell."""
    outcomes = outcomes_on_ranks(3, with_a_missing_rank, tmp_path, missing, "barrier", stopped)
    assert [outcome.error for outcome in outcomes] == ["died"] * 3
    for rank in {0, 1, 2} - {missing}:
        log = (tmp_path / "logs" / f"rank{rank}.log").read_text()
        assert f"rank {missing} failed: it did not enter collective " in log


def with_slow_rank_0(ranks: Ranks, logs: Path) -> list[float]:
    watch = watched(ranks, logs)
    if ranks.main:
        time.sleep(3)
    ranks.barrier(60)
    total = ranks.agree(1)
    watch.close()
    return total


def test_work_of_rank_0_may_last_longer(tmp_path: Path) -> None:
    assert on_ranks(2, with_slow_rank_0, tmp_path) == [[2.0]] * 2
    assert not (tmp_path / "logs").exists()


# Training


def float64_trainer(config: RunConfig, ranks: Ranks) -> Trainer:
    """Everything in float64, Newton-Schulz too; no weight at a neutral value."""
    trainer = Trainer(config, Runtime(torch.device("cpu"), torch.float64, False, ranks))
    trainer.model.load_state_dict(random_model(config.model, seed=1).state_dict())
    return trainer


def steps(ranks: Ranks, config: RunConfig, num_steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """Train on a fixed list of sequences; gives losses and all state."""
    trainer = float64_trainer(config, ranks)
    count, length = trainer.batch_sequences, config.model.seq_len + 1
    losses = []
    for step in range(num_steps):
        batch = random_tokens(config.model, count, length, seed=step).int()
        share = batch[trainer.share_of_batch.start : trainer.share_of_batch.stop]
        losses.append(float(trainer.train_step(share, trainer.plan(step / num_steps, 0.1))))
    return losses, {name: tensor.detach() for name, tensor in trainer.state_tensors().items()}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("sequences", [6, 7])
def test_training_equals_one_process(size: int, sequences: int) -> None:
    """Shares of unequal size, several micro-batches, recurrence off and on, clipping at work."""
    config = small_run_config(
        batch_tokens=16 * sequences, micro_batch_tokens=16 * sequences, recurrence_from=0.5
    )
    config = replace(config, train=replace(config.train, micro_batch_tokens=16))
    (losses, expected), *_ = on_ranks(1, steps, config, 6)
    for got_losses, got in on_ranks(size, steps, config, 6):
        assert got_losses == pytest.approx(losses, rel=0, abs=1e-6)  # a float32 sum
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-9, msg=name)
    start = random_model(config.model, seed=1).state_dict()
    moved = [float((expected[f"model.{n}"] - w).abs().max()) for n, w in start.items()]
    assert min(moved) > 1e-3, "there was something to compare"


def fewer_micro_batches_on_one_rank(ranks: Ranks, config: RunConfig) -> dict[str, Tensor]:
    trainer = float64_trainer(config, ranks)
    trainer.micro_batch_tokens = 16 * (1 + ranks.rank)
    batch = random_tokens(config.model, trainer.batch_sequences, 17, seed=0).int()
    share = batch[trainer.share_of_batch.start : trainer.share_of_batch.stop]
    trainer.train_step(share, trainer.plan(0.9, 0.1))
    return {name: tensor.detach() for name, tensor in trainer.model.named_parameters()}


def test_ranks_may_cut_their_share_differently() -> None:
    config = small_run_config(batch_tokens=16 * 8, micro_batch_tokens=16)
    (expected,) = on_ranks(1, fewer_micro_batches_on_one_rank, config)
    for got in on_ranks(2, fewer_micro_batches_on_one_rank, config):
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-9, msg=name)


def test_a_model_without_skips_trains_on_several_ranks() -> None:
    model = small_config(num_layers=1, loop_first=0, loop_last=0, loop_visits=1, parallel_from=1)
    config = small_run_config(micro_batch_tokens=32)
    config = replace(config, model=model, adapt=replace(config.adapt, frozen_blocks=0))
    (losses, expected), *_ = on_ranks(1, steps, config, 2)
    for got_losses, got in on_ranks(2, steps, config, 2):
        assert got_losses == pytest.approx(losses, rel=0, abs=1e-6)
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-9, msg=name)


def muon_updates(ranks: Ranks, num_matrices: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=generator))

    matrices = [random(4, 6) for _ in range(num_matrices)] + [random(5, 3)]
    muon = MuonEqR(matrices, torch.float64, ranks)
    for _ in range(3):
        for matrix in matrices:
            assert matrix.grad is not None
            matrix.grad.copy_(random(*matrix.shape).detach())
        muon.step(0.1, 0.9, 0.1)
    return [matrix.detach() for matrix in matrices]


@pytest.mark.parametrize("num_matrices", [1, 2, 5])
def test_muon_shares_out_every_matrix_once(num_matrices: int) -> None:
    """Also where there are fewer matrices of a shape than ranks."""
    (expected,) = on_ranks(1, muon_updates, num_matrices)
    for got in on_ranks(3, muon_updates, num_matrices):
        for matrix, wanted in zip(got, expected, strict=True):
            torch.testing.assert_close(matrix, wanted, rtol=0, atol=1e-12)


def unused_parameter(ranks: Ranks) -> str:
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    exchange = GradientExchange([[used], [unused]], ranks)
    exchange.arm()
    used.sum().backward()
    try:
        exchange.finish()
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_parameter_without_gradient_is_an_error() -> None:
    assert on_ranks(2, unused_parameter) == ["no gradient for 1 parameters"] * 2


# Quantization


def integers(ranks: Ranks, names: list[str]) -> dict[str, tuple[Tensor, ...]]:
    model = random_model(small_config(), seed=3, dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    weights = dict(model.named_parameters())
    matrices = {name: weights[name].detach() for name in names}
    hessians = {}
    for name, matrix in matrices.items():
        x = torch.randn(200, matrix.size(1), generator=generator) + 1
        hessians[input_of(name)] = x.T @ x
    quantizer = Quantizer(matrices, hessians, 0.01, split_columns=True, ranks=ranks)
    steps = {name: 0.3 + 0.01 * i for i, name in enumerate(names)}
    quantized = quantizer.solve(steps)
    assert quantized.keys() == quantizer.dampings.keys() == quantizer.spreads.keys()
    return {n: (matrix.integers, matrix.rows, matrix.columns) for n, matrix in quantized.items()}


@pytest.mark.parametrize("size", [2, 3])
def test_gptq_gives_the_same_integers(size: int) -> None:
    names = [f"blocks.{layer}.{name}" for layer in range(4) for name in ("query", "up", "down")]
    names.append("embedding")
    (expected,) = on_ranks(1, integers, names)
    shares = on_ranks(size, integers, names)
    assert all(shares)
    assert sorted(name for share in shares for name in share) == sorted(names)
    got = {name: tensors for share in shares for name, tensors in share.items()}
    for name in names:
        for tensor, wanted in zip(got[name], expected[name], strict=True):
            assert torch.equal(tensor, wanted), name


# Scoring


def losses_of(
    ranks: Ranks, num_targets: int, stride: int, learning: ScoreFirstConfig | None = None
) -> Tensor:
    config = small_config()
    tokens = np.random.default_rng(5).integers(0, config.vocab_size, num_targets + 1)
    windows = windows_of(num_targets, config.seq_len, stride)
    model = random_model(config, seed=6)
    order = layer_order(config, recurrent=True)
    stream = tokens.astype(np.uint16)
    batch_tokens = 4 * config.seq_len
    how = (stream, windows, batch_tokens, None, ranks)
    if learning is None:
        return window_losses(model, order, *how)
    return score_first_losses(model, order, learning, *how)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("stride", [0, 4])
@pytest.mark.parametrize("num_targets", [5, 203])
def test_scoring_equals_one_process(size: int, stride: int, num_targets: int) -> None:
    (expected,) = on_ranks(1, losses_of, num_targets, stride)
    assert expected.dtype == torch.float64
    for got in on_ranks(size, losses_of, num_targets, stride):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("adapter_rank", [0, 2])
@pytest.mark.parametrize("size", [2, 4])
def test_learning_while_scoring_equals_one_process(size: int, adapter_rank: int) -> None:
    # Three sequences a chunk: the ranks' shares differ, and of four ranks one has none.
    chunk_tokens = 3 * small_config().seq_len
    learning = ScoreFirstConfig(
        "adamw", 1e-2, chunk_tokens, adapter_rank=adapter_rank, adapter_lr=1e-2, adapter_tokens=4
    )
    (expected,) = on_ranks(1, losses_of, 203, 4, learning)
    (fixed,) = on_ranks(1, losses_of, 203, 4)
    assert (expected - fixed).abs().max() > 0.01
    for got in on_ranks(size, losses_of, 203, 4, learning):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
