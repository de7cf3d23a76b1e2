"""The Triton kernels of a block against float64, and recorded steps against plain ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.config import RunConfig, ScoreFirstConfig
from paramgolf.model.attention import exclude_self_value, rotary_tables, rotate
from paramgolf.model.gpt import GPT, merge_skip
from paramgolf.model.losses import predicted_nats, target_nats
from paramgolf.model.order import layer_order
from paramgolf.optim.trainer import StepPlan, Trainer
from paramgolf.pipeline.run import new_run, run_job
from paramgolf.recipes import RECIPES
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.scoring.score_first import Learner, restored
from paramgolf.stages import adapt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

EPS = 1e-6
H, K, D = 4, 2, 64


def random(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).cuda().bfloat16().requires_grad_()


def wide(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def assert_close(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Check that all errors are of the size of bfloat16's rounding."""
    for number, (found, expected) in enumerate(pairs):
        error = (found.double() - expected).norm() / expected.norm()
        assert error < 0.008, (number, float(error))


def grads_of(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    first, second = (tensor.grad for tensor in tensors)
    assert first is not None
    assert second is not None
    return first, second


@pytest.mark.parametrize(("batch", "length"), [(2, 256), (3, 37)])
def test_heads(batch: int, length: int) -> None:
    x, gain = random(batch, length, H + 2 * K, D), (1 + random(H, seed=2).float()).detach()
    gain.requires_grad_()
    cos, sin = rotary_tables(length, 16, 10_000, length, x.device, torch.float32)
    from paramgolf.model.kernels.heads import Heads

    found = Heads.apply(x, cos, sin, gain, K, EPS)
    x_wide, gain_wide = wide(x, gain)
    q, k, v = x_wide.split([H, K, K], dim=2)
    q, k = (rotate(F.rms_norm(t, (D,), eps=EPS), cos, sin) for t in (q, k))
    expected = (q * gain_wide[:, None], k, v, v)
    grads = [random(*t.shape, seed=3 + i).detach() for i, t in enumerate(expected)]
    torch.autograd.backward(found, grads)
    torch.autograd.backward(expected, [grad.double() for grad in grads])
    assert_close(list(zip(found, expected, strict=True)))
    assert_close([grads_of(x, x_wide), grads_of(gain, gain_wide)])


@pytest.mark.parametrize(("batch", "length"), [(2, 256), (3, 37)])
def test_xsa(batch: int, length: int) -> None:
    from paramgolf.model.kernels.heads import Xsa

    y, v = random(batch, length, H, D), random(batch, length, K, D, seed=2)
    y_wide, v_wide = wide(y, v)
    found, expected = Xsa.apply(y, v), exclude_self_value(y_wide, v_wide)
    grad = random(*expected.shape, seed=3).detach()
    found.backward(grad)
    expected.backward(grad.double())
    assert_close([(found, expected), grads_of(y, y_wide), grads_of(v, v_wide)])


@pytest.mark.parametrize("length", [256, 37])
def test_squared_mlp(length: int) -> None:
    from paramgolf.model.kernels.mlp import SquaredMlp

    width, hidden = 128, 512
    x = random(3, length, width)
    up = (random(hidden, width, seed=2).detach() * width**-0.5).requires_grad_()
    down = (random(width, hidden, seed=3).detach() * hidden**-0.5).requires_grad_()
    x_wide, up_wide, down_wide = wide(x, up, down)
    found, squares = SquaredMlp.apply(x, up, down, 0.5)
    expected_squares = F.leaky_relu(x_wide @ up_wide.T, 0.5).square()
    expected = expected_squares @ down_wide.T
    grad = random(*expected.shape, seed=4).detach()
    found.backward(grad)
    expected.backward(grad.double())
    matrices = [grads_of(up, up_wide), grads_of(down, down_wide)]
    assert_close([(found, expected), (squares, expected_squares), grads_of(x, x_wide), *matrices])


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("width", [512, 96])
def test_enter(width: int, merges: bool) -> None:
    from paramgolf.model.kernels.stream import Enter

    x, x0, skip = (random(3, 137, width, seed=seed) for seed in range(3))
    mix = random(2, width, seed=3).detach().float().requires_grad_()
    weight, gate = (random(width, seed=4 + i).detach().float().requires_grad_() for i in range(2))
    scale = torch.tensor(0.625, device="cuda")
    x_wide, x0_wide, skip_wide, mix_wide, weight_wide, gate_wide = every = wide(
        x, x0, skip, mix, weight, gate
    )
    found = Enter.apply(
        x, x0, *((skip, weight, gate) if merges else (None, None, None)), mix, scale, EPS
    )
    stream = merge_skip(x_wide, skip_wide, weight_wide, gate_wide) if merges else x_wide
    stream = mix_wide[0] * stream + mix_wide[1] * x0_wide
    expected = stream, F.rms_norm(stream, (width,), eps=EPS) * scale.double()
    grads = [random(*x.shape, seed=7 + i).detach() for i in range(2)]
    torch.autograd.backward(found, grads)
    torch.autograd.backward(expected, [grad.double() for grad in grads])
    assert_close(list(zip(found, expected, strict=True)))
    own = (x, x0, skip, mix, weight, gate)
    used = [0, 1, 3] if not merges else range(6)
    assert_close([grads_of(own[i], every[i]) for i in used])


@pytest.mark.parametrize("width", [512, 96])
def test_join(width: int) -> None:
    from paramgolf.model.kernels.stream import Join

    x, y = random(3, 137, width), random(3, 137, width, seed=2)
    scale = torch.tensor(0.625, device="cuda")
    x_wide, y_wide = wide(x, y)
    found, stream = Join.apply(x, y, scale, EPS), x_wide + y_wide
    expected = stream, F.rms_norm(stream, (width,), eps=EPS) * scale.double()
    grads = [random(*x.shape, seed=7 + i).detach() for i in range(2)]
    torch.autograd.backward(found, grads)
    torch.autograd.backward(expected, [grad.double() for grad in grads])
    assert_close(list(zip(found, expected, strict=True)))
    assert_close([grads_of(x, x_wide), grads_of(y, y_wide)])


@pytest.mark.parametrize("count", [2, 18])
def test_sums(count: int) -> None:
    from paramgolf.model.kernels.stream import Share, Sum

    tensors = [random(7, 333, seed=seed) for seed in range(count)]
    assert_close([(Sum.apply(*tensors), torch.stack(wide(*tensors)).sum(0))])
    x = random(7, 333)
    torch.autograd.backward(Share.apply(x, count), tensors)
    assert x.grad is not None
    assert_close([(x.grad, torch.stack(wide(*tensors)).sum(0))])


@pytest.mark.parametrize("vocabulary", [8192, 1000])
def test_losses(vocabulary: int) -> None:
    from paramgolf.model.kernels.loss import WeightedLoss, nats

    hidden, embedding = random(50, 128), random(vocabulary, 128, seed=2)
    generator = torch.Generator().manual_seed(3)
    targets, previous = torch.randint(vocabulary, (2, 50), generator=generator).cuda()
    weights = torch.rand(50, generator=generator).cuda()
    impossible = (torch.rand(vocabulary, vocabulary, generator=generator) < 0.3).cuda()
    hidden_wide, embedding_wide = wide(hidden, embedding)
    found = WeightedLoss.apply(hidden, embedding, targets, weights, 15.0)
    every = target_nats(hidden_wide, embedding_wide, targets, 15.0)
    expected = (every * weights.double()).sum()
    torch.autograd.backward([found, expected], [torch.tensor(2.0).cuda()] * 2)
    assert_close([(found, expected)])
    assert_close([grads_of(hidden, hidden_wide), grads_of(embedding, embedding_wide)])
    own, exact = (hidden.detach(), embedding.detach()), (hidden_wide, embedding_wide)
    assert_close([(nats(*own, None, previous, targets, 15.0), every)])
    what = impossible, previous, targets, 15.0
    assert_close([(nats(*own, *what), predicted_nats(*exact, *what))])


def small(**train: int) -> RunConfig:
    """A model of a shape that the kernels support, as every recipe's is on a GPU."""
    config = RECIPES["tiny"][1]
    model = dataclasses.replace(config.model, width=256, num_heads=4, num_kv_heads=2, mlp_ratio=4)
    sizes = {"batch_tokens": 8192, "micro_batch_tokens": 4096, "warmup_steps": 1} | train
    pack = dataclasses.replace(config.pack, budget_bytes=4_000_000)  # the model has 4.9 M weights
    train = dataclasses.replace(config.train, **sizes)
    return dataclasses.replace(config, device="cuda", model=model, pack=pack, train=train)


def test_recorded_steps_equal_plain_ones() -> None:
    """Both layer orders, from one state, before and after a resumption."""
    trainer = Trainer(small(), select_runtime("cuda"))
    trainer.warm_up()
    assert set(trainer.recorded) == {False, True}
    state = {name: tensor.clone() for name, tensor in trainer.state_tensors().items()}
    model = trainer.config.model
    generator = torch.Generator().manual_seed(1)
    shape = (6, trainer.batch_sequences, model.seq_len + 1)
    batches = torch.randint(model.vocab_size, shape, generator=generator).int().cuda()

    def losses() -> list[float]:
        trainer.load_state_tensors(state, step=0)
        plans = [StepPlan(recurrent=i % 3 == 1, lr_factor=1 - i / 8, momentum=0.9 + i / 100)
                 for i in range(6)]  # fmt: skip
        pairs = zip(batches, plans, strict=True)
        return [float(trainer.train_step(batch, plan)) for batch, plan in pairs]

    recorded = [losses(), losses()]
    trainer.recorded.clear()
    plain = losses()
    assert max(plain) - min(plain) > 0.05  # the weights change
    for got in recorded:
        assert got == pytest.approx(plain, rel=2e-3)


def test_recorded_learning_equals_plain_learning_bit_for_bit() -> None:
    config = small().model
    model = GPT(config, torch.bfloat16)
    model.init_weights(torch.Generator().manual_seed(1))
    model.cuda().accelerate()
    learning = ScoreFirstConfig("adamw", lr=1e-3, chunk_tokens=4 * config.seq_len)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 20 * config.seq_len)

    def learned(recorded: bool) -> list[Tensor]:
        with restored(model):
            learner = Learner(model, layer_order(config, recurrent=True), learning, 5)
            if not recorded:
                learner._step = learner._plain_step
            for chunk in range(4):
                learner.learn(chunk, tokens.astype(np.uint16))
            return [parameter.detach().clone() for parameter in model.parameters()]

    before = [parameter.detach().clone() for parameter in model.parameters()]
    plain, recorded = learned(recorded=False), learned(recorded=True)
    assert any(not torch.equal(a, b) for a, b in zip(before, plain, strict=True))
    for a, b in zip(plain, recorded, strict=True):
        assert torch.equal(a, b)


def test_adaptation_with_a_shorter_last_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded step pads it, and gives the losses of plain steps."""
    config = small(max_steps=20)
    rows = 7  # does not divide the sequences of the text
    config = dataclasses.replace(
        config,
        adapt=dataclasses.replace(
            config.adapt, text="scored", epochs=2, chunk_tokens=rows * config.model.seq_len
        ),
    )
    run = new_run("tiny", config, tmp_path / "recorded")
    recorded = run_job(run, "tiny", config, Reporter(), select_runtime("cuda"))
    monkeypatch.setattr(adapt._Adaptation, "record", lambda self: None)
    run = new_run("tiny", config, tmp_path / "plain", from_run=None)
    plain = run_job(run, "tiny", config, Reporter(), select_runtime("cuda"))
    losses = [[epoch["train_loss_nats"] for epoch in r["adaptation"]] for r in (recorded, plain)]
    assert losses[0][1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
