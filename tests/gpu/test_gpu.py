"""On a CUDA GPU: bfloat16 with kernels against float64 on the CPU, memory, the whole job."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from paramgolf.compress.gptq import factor_hessians, pivots, solve
from paramgolf.compress.scales import column_scales, row_scales
from paramgolf.config import ModelConfig, RunConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.model.past import Past
from paramgolf.optim.trainer import Trainer
from paramgolf.pipeline.run import new_run, run_job
from paramgolf.recipes import RECIPES
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import plain_windows, sliding_windows
from paramgolf.study.ablate import run_grid
from paramgolf.study.cells import parse_cells

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SMALL = ModelConfig(vocab_size=512, num_layers=8, width=256, num_heads=4, num_kv_heads=2,
                    seq_len=256, loop_first=2, loop_last=4, parallel_from=6)  # fmt: skip


def pair() -> tuple[GPT, GPT]:
    """The same random weights in bfloat16 with kernels on the GPU and in float64 on the CPU."""
    exact = GPT(SMALL, torch.float64)
    generator = torch.Generator().manual_seed(1)
    exact.init_weights(generator)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).double()
    fast = GPT(SMALL, torch.bfloat16)
    fast.load_state_dict(exact.state_dict())
    fast.cuda().accelerate()
    return fast, exact


@pytest.mark.parametrize("recurrent", [False, True])
def test_losses_and_gradients_match_float64(recurrent: bool) -> None:
    fast, exact = pair()
    order = layer_order(SMALL, recurrent)
    tokens = torch.randint(512, (4, 257), generator=torch.Generator().manual_seed(2))
    loss = fast.mean_nats(tokens.cuda(), order)
    loss.backward()
    expected = exact.mean_nats(tokens, order)
    expected.backward()
    assert abs(loss.item() - expected.item()) < 0.02 * expected.item()
    pairs = zip(fast.named_parameters(), exact.parameters(), strict=True)
    vectors: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, parameter), reference in pairs:
        assert parameter.grad is not None
        assert reference.grad is not None
        # Those of a vector are few and small: so those of all blocks together.
        key = name if parameter.ndim == 2 else name.rpartition(".")[2]
        grads = parameter.grad.double().cpu().flatten(), reference.grad.flatten()
        vectors.setdefault(key, []).append(grads)
    for key, grads in vectors.items():
        got, wanted = (torch.cat(parts) for parts in zip(*grads, strict=True))
        assert torch.cosine_similarity(got, wanted, dim=0) > 0.97, key


def test_windows_match_float64() -> None:
    fast, exact = pair()
    tokens = np.random.default_rng(3).integers(0, 512, 1501).astype(np.uint16)
    order = layer_order(SMALL, recurrent=True)
    for windows in (plain_windows(1500, 256), sliding_windows(1500, 256, 64)):
        got = window_losses(fast, order, tokens, windows, 1024).double().cpu()
        wanted = window_losses(exact, order, tokens, windows, 1024)
        assert not got.isnan().any()
        assert abs(float(got.mean() - wanted.mean())) < 0.01 * float(wanted.mean())


def test_chunks_after_a_past_match_float64() -> None:
    """Prompt, several tokens and single tokens: attention's three cases."""
    fast, exact = pair()
    order = layer_order(SMALL, recurrent=True)
    past = Past(SMALL, order, 2, fast.embedding)
    tokens = torch.randint(512, (2, 50), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        parts = [fast(c, order, past=past) for c in tokens.cuda().split([20, 15, 13, 1, 1], dim=1)]
        expected = exact(tokens, order)
    got = torch.cat(parts, dim=1).double().cpu()
    assert float(torch.cosine_similarity(got, expected, dim=-1).min()) > 0.99


def test_gptq_returns_the_integers_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(3, 64, 256, generator=generator)
    inputs = torch.randn(3, 512, 256, generator=generator)
    inputs = inputs @ torch.randn(256, 256, generator=generator)
    hessians = inputs.mT @ inputs
    integers = []
    for device in ("cpu", "cuda"):
        matrices = weights.to(device)
        factor = factor_hessians(hessians.to(device), 0.01)
        rows = row_scales(matrices, torch.full((3,), 0.4, device=device))
        integers.append(solve(matrices, factor, rows, column_scales(pivots(factor))).cpu())
    assert (integers[0] != integers[1]).double().mean() < 0.002  # float32 ties


def trainer_config(micro_batch_tokens: int) -> RunConfig:
    config = RECIPES["tiny"][1]
    train = dataclasses.replace(
        config.train, batch_tokens=micro_batch_tokens, micro_batch_tokens=micro_batch_tokens
    )
    return dataclasses.replace(config, device="cuda", train=train)


def test_warm_up_is_undone() -> None:
    trainer = Trainer(trainer_config(4096), select_runtime("cuda"))
    # Copies must not keep the graph of a backward pass alive on the default stream.
    before = {name: t.detach().clone() for name, t in trainer.state_tensors().items()}
    random_state = torch.cuda.get_rng_state()
    trainer.warm_up()
    after = trainer.state_tensors()
    for name, tensor in after.items():
        # AdamW creates its state at the first step.
        assert torch.equal(tensor, before.get(name, torch.zeros_like(tensor))), name
    assert before.keys() <= after.keys()
    assert torch.equal(random_state, torch.cuda.get_rng_state())
    assert trainer.step == 0


def test_micro_batch_is_halved_until_it_fits() -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    wanted = 1 << 20
    trainer = Trainer(trainer_config(wanted), select_runtime("cuda"))
    torch.cuda.set_per_process_memory_fraction(4e9 / total)
    try:
        trainer.warm_up()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 256 <= trainer.micro_batch_tokens < wanted
    assert wanted % trainer.micro_batch_tokens == 0


def test_whole_job(tmp_path: Path) -> None:
    config = dataclasses.replace(
        RECIPES["tiny"][1],
        device="cuda",
        train=dataclasses.replace(RECIPES["tiny"][1].train, max_steps=0, max_seconds=8,
                                  reserve_seconds=1),
    )  # fmt: skip
    run = new_run("tiny", config, tmp_path / "run")
    results = run_job(run, "tiny", config, Reporter(), select_runtime("cuda"))
    assert results["stages"]["sliding"]["bpb"] < 2.6
    assert 4 < results["seconds"]["train: steps"] <= 7.2


def test_cells_leave_no_memory_behind(tmp_path: Path) -> None:
    tiny = RECIPES["tiny"][1]
    train = dataclasses.replace(tiny.train, max_steps=50)
    config = dataclasses.replace(tiny, device="cuda", train=train)
    rates = [["train.matrix_lr=0.03"], [], ["train.matrix_lr=0.05"], ["model.mlp_ratio=3"]]
    cells = parse_cells(config, rates)
    found = run_grid("tiny", cells, [1], tmp_path, Reporter(), "train")
    assert not found.failed
    trained = [
        RunDir(tmp_path / cell.folder / "seed-1").stage_result("train") or {} for cell in cells
    ]
    peaks = [result["peak_gpu_bytes"] for result in trained]
    assert max(peaks[1:3]) < 1.02 * peaks[0]
    assert peaks[3] < peaks[0]  # of a smaller model
