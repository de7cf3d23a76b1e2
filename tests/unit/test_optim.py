"""Optimizers against singular value decompositions, torch.optim, and formulas in float64."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paramgolf.config import RunConfig, TrainConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.model.roles import MATRIX_NAMES
from paramgolf.optim.bank import Bank
from paramgolf.optim.ema import WeightAverage
from paramgolf.optim.federated import FederatedAdamW
from paramgolf.optim.groups import Optimizers, partition
from paramgolf.optim.muon import MuonEqR, orthogonalize
from paramgolf.optim.schedule import averaging, cosine, momentum, warmdown
from paramgolf.optim.trainer import StepPlan, Trainer, in_halves
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.ranks import Ranks
from paramgolf.stages.adapt import freeze
from tests.helpers import (
    Array,
    randn,
    random_model,
    random_tokens,
    small_config,
    small_run_config,
)

CPU = Runtime(torch.device("cpu"), torch.float32, accelerated=False)
SHAPES = [(24, 8), (8, 24), (12, 12), (1, 6), (6, 1)]

# MuonEq-R


def set_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Write into the memory of the parameter's bank."""
    assert parameter.grad is not None
    parameter.grad.copy_(gradient)


def no_gradients(model: nn.Module) -> bool:
    """Return whether all gradients are cleared."""
    return all(p.grad is not None and not bool(p.grad.any()) for p in model.parameters())


def quintic_of_singular_values(matrix: Array) -> Array:
    """U p(S) V^T: p is the quintic, applied five times to S divided by the Frobenius norm."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((matrix**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


class ReferenceMuon:
    """MuonEq-R of one matrix in numpy."""

    def __init__(self, weight: Tensor) -> None:
        self.weight: Array = weight.detach().numpy().copy()
        self.buffer = np.zeros_like(self.weight)

    def step(self, gradient: Array, lr: float, momentum: float, decay: float) -> None:
        self.buffer = momentum * self.buffer + (1 - momentum) * gradient
        update = momentum * self.buffer + (1 - momentum) * gradient
        update = update / np.sqrt((update**2).sum(axis=1, keepdims=True))
        rows, columns = update.shape
        self.weight = self.weight * (1 - lr * decay) - lr * math.sqrt(
            max(1.0, rows / columns)
        ) * quintic_of_singular_values(update)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_applies_the_quintic_to_singular_values(shape: tuple[int, int]) -> None:
    matrices = randn(3, *shape, seed=0) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    result = orthogonalize(matrices)
    for matrix, got in zip(matrices, result, strict=True):
        expected = quintic_of_singular_values(matrix.numpy())
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-11)


def test_orthogonalize_of_zeros_is_zero() -> None:
    assert not orthogonalize(torch.zeros(1, 4, 3)).any()


def test_muon_follows_the_reference_over_several_steps() -> None:
    """Three matrices of each of three shapes, in an order that mixes the shapes."""
    shapes = [(24, 8), (8, 24), (12, 12)] * 3
    matrices = [nn.Parameter(randn(*shape, seed=i)) for i, shape in enumerate(shapes)]
    references = [ReferenceMuon(matrix) for matrix in matrices]
    muon = MuonEqR(matrices, torch.float64)
    for step, (lr, mu, decay) in enumerate([(0.1, 0.8, 0.5), (0.2, 0.9, 0.0), (0.05, 0.95, 2.0)]):
        for i, (matrix, reference) in enumerate(zip(matrices, references, strict=True)):
            # Rows of very different norms, which the row normalisation makes equal.
            gradient = randn(*matrix.shape, seed=100 * step + i) * torch.logspace(
                -2, 2, len(matrix), dtype=torch.float64
            ).unsqueeze(1)
            set_gradient(matrix, gradient)
            reference.step(gradient.numpy(), lr, mu, decay)
        before = [matrix.grad.clone() for matrix in matrices if matrix.grad is not None]
        muon.step(lr, mu, decay)
        for matrix, reference, gradient in zip(matrices, references, before, strict=True):
            got = matrix.detach().numpy()
            np.testing.assert_allclose(got, reference.weight, rtol=0, atol=1e-9)
            assert matrix.grad is not None
            assert torch.equal(matrix.grad, gradient), "the gradient is unchanged"


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (12, 12)])
def test_muon_in_one_batch_equals_one_by_one(shape: tuple[int, int]) -> None:
    together = [nn.Parameter(randn(*shape, seed=i)) for i in range(4)]
    alone = copy.deepcopy(together)
    batched = MuonEqR(together, torch.float64)
    single = [MuonEqR([matrix], torch.float64) for matrix in alone]
    for step in range(3):
        for i, (one, other) in enumerate(zip(together, alone, strict=True)):
            for matrix in (one, other):
                set_gradient(matrix, randn(*shape, seed=10 * step + i))
        batched.step(0.1, 0.9, 0.1)
        for muon in single:
            muon.step(0.1, 0.9, 0.1)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(32, 12), (12, 32), (16, 16)])
def test_muon_agrees_with_torch_muon_on_rows_of_equal_norm(shape: tuple[int, int]) -> None:
    """Where every row of the momentum has the same norm, normalising rows is only a factor.

    The gradients are combinations of two matrices whose rows are unit vectors, each orthogonal
    to its partner in the other matrix, and so the rows of all their combinations are alike.
    torch.optim.Muon runs Newton-Schulz in bfloat16, the only difference: the moves agree to 3 %
    (measured: 1 to 2 %).
    """
    one = torch.nn.functional.normalize(randn(*shape, seed=1), dim=1)
    two = randn(*shape, seed=2)
    two = torch.nn.functional.normalize(two - (two * one).sum(1, keepdim=True) * one, dim=1)
    ours = nn.Parameter(randn(*shape, seed=0))
    theirs = nn.Parameter(ours.detach().clone())
    lr, mu, decay = 0.05, 0.9, 0.7
    muon = MuonEqR([ours], torch.float64)
    library = torch.optim.Muon(
        [theirs],
        lr=lr,
        weight_decay=decay,
        momentum=mu,
        nesterov=True,
        ns_steps=5,
        adjust_lr_fn="original",
    )
    for gradient in (one, -3 * two, 0.5 * one + two):
        start = ours.detach().clone()
        set_gradient(ours, gradient)
        theirs.grad = gradient.clone()
        muon.step(lr, mu, decay)
        library.step()
        moved = (ours - (1 - lr * decay) * start).norm()
        assert float((ours - theirs).detach().norm() / moved.detach()) < 0.03
        with torch.no_grad():
            theirs.copy_(ours)


def test_muon_rejects_vectors() -> None:
    with pytest.raises(ValueError, match="matrices"):
        MuonEqR([nn.Parameter(torch.zeros(3))], torch.float32)


def test_a_bank_shares_memory_with_its_parameters() -> None:
    parameters = [nn.Parameter(randn(3, 2, seed=0)), nn.Parameter(randn(4, seed=1))]
    before = [parameter.detach().clone() for parameter in parameters]
    bank = Bank(parameters)
    for parameter, value in zip(parameters, before, strict=True):
        assert torch.equal(parameter, value)
    for _ in range(2):
        (parameters[0].sum() + 2 * parameters[1].sum()).backward()
    assert bank.gradients.tolist() == [2] * 6 + [4] * 4
    with torch.no_grad():
        bank.flat.sub_(bank.gradients)
    for parameter, value, moved in zip(parameters, before, (2, 4), strict=True):
        assert torch.equal(parameter, value - moved)
    bank.zero_grad()
    assert all(p.grad is not None and not bool(p.grad.any()) for p in parameters)


# Groups


def test_partition_covers_every_parameter_once() -> None:
    model = random_model(small_config(), seed=0)
    groups = partition(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    covered = [names[id(parameter)] for group in groups for parameter in group]
    assert sorted(covered) == sorted(names.values())
    assert [names[id(p)] for p in groups.embedding] == ["embedding"]
    matrices = {names[id(p)] for p in groups.matrices}
    assert matrices == {f"blocks.{i}.{name}" for i in range(6) for name in MATRIX_NAMES}


def test_partition_rejects_a_new_parameter() -> None:
    model = random_model(small_config(), seed=0)
    model.bigram = nn.Parameter(torch.zeros(300, 300))
    with pytest.raises(RuntimeError, match="bigram"):
        partition(model)


def test_partition_rejects_a_parameter_in_two_places() -> None:
    model = random_model(small_config(), seed=0)
    blocks = model.block_list()
    blocks[1].query = blocks[0].query
    with pytest.raises(RuntimeError, match=r"blocks\.0\.query"):
        partition(model)


def set_gradients(model: GPT, seed: int, scale: float) -> None:
    for i, parameter in enumerate(model.parameters()):
        set_gradient(parameter, scale * randn(*parameter.shape, seed=1000 * seed + i))


def test_optimizers_step_equals_adamw_and_muon_by_hand() -> None:
    """Clipping over all parameters together, and learning rates of every group, in two steps."""
    config = TrainConfig(grad_clip=0.3)
    model = random_model(small_config(), seed=0)
    named = dict(model.named_parameters())
    matrices = {n: ReferenceMuon(p) for n, p in named.items() if n.split(".")[-1] in MATRIX_NAMES}
    copies = {n: p.detach().clone() for n, p in named.items() if n not in matrices}
    library = torch.optim.AdamW(
        [
            {"params": [copies["embedding"]], "weight_decay": 0.085},
            {"params": [p for n, p in copies.items() if n != "embedding"], "weight_decay": 0.02},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
    )
    optimizers = Optimizers(model, config, torch.float64)
    # Clipped much, clipped little, and not clipped.
    for seed, (scale, factor, mu) in enumerate([(1.0, 1.0, 0.9), (5e-3, 0.4, 0.95), (1e-4, 1, 0)]):
        set_gradients(model, seed, scale)
        gradients = {n: p.grad.numpy().copy() for n, p in named.items() if p.grad is not None}
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        clip = min(1.0, 0.3 / norm)
        assert (clip < 1) == (seed < 2), "clipped in the first two cases"
        library.param_groups[0]["lr"] = 0.03 * factor
        library.param_groups[1]["lr"] = 0.02 * factor
        for name, copied in copies.items():
            copied.grad = torch.from_numpy(gradients[name] * clip)
        library.step()
        for name, reference in matrices.items():
            reference.step(gradients[name] * clip, 0.022 * factor, mu, 0.095)
        optimizers.step(factor, mu)
        assert no_gradients(model)
        for name, parameter in named.items():
            wanted = copies[name].numpy() if name in copies else matrices[name].weight
            # clip_grad_norm_ adds 1e-6 to the norm, negligible in Adam's first steps.
            np.testing.assert_allclose(
                parameter.detach().numpy(), wanted, rtol=0, atol=1e-7, err_msg=name
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimizer_state_round_trip_continues_bit_for_bit(dtype: torch.dtype) -> None:
    model = random_model(small_config(num_layers=4), seed=0, dtype=dtype)
    optimizers = Optimizers(model, TrainConfig(), dtype)
    for step in range(3):
        set_gradients(model, step, 1.0)
        optimizers.step(1.0, 0.9)
    twin = copy.deepcopy(model)
    continued = Optimizers(twin, TrainConfig(), dtype)
    saved = {name: tensor.clone() for name, tensor in optimizers.state_tensors().items()}
    continued.load_state_tensors(saved)
    for name, tensor in continued.state_tensors().items():
        assert tensor.dtype == saved[name].dtype, name
        assert torch.equal(tensor, saved[name]), name
    for step in range(3, 6):
        for each, optimizer in ((model, optimizers), (twin, continued)):
            set_gradients(each, step, 1.0)
            optimizer.step(0.5, 0.95)
    assert_equal_parameters(model, twin)
    for name, tensor in optimizers.state_tensors().items():
        assert torch.equal(tensor, continued.state_tensors()[name]), name


def test_optimizer_state_round_trip_before_the_first_step() -> None:
    model = random_model(small_config(num_layers=4), seed=0)
    twin = copy.deepcopy(model)
    optimizers = Optimizers(model, TrainConfig(), torch.float64)
    continued = Optimizers(twin, TrainConfig(), torch.float64)
    continued.load_state_tensors(optimizers.state_tensors())
    for each, optimizer in ((model, optimizers), (twin, continued)):
        set_gradients(each, 0, 1.0)
        optimizer.step(1.0, 0.9)
    assert_equal_parameters(model, twin)


def assert_equal_parameters(model: nn.Module, other: nn.Module) -> None:
    others = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, others[name]), name


# Schedules and average


def test_warmdown_is_flat_then_linear_to_zero() -> None:
    shares = np.linspace(0, 1, 101)
    factors = np.array([warmdown(float(share), 0.72) for share in shares])
    expected = np.interp(shares, [0.0, 0.28, 1.0], [1.0, 1.0, 0.0])
    np.testing.assert_allclose(factors, expected, rtol=0, atol=1e-12)
    assert (np.diff(factors) <= 0).all()
    assert warmdown(1.0, 0.72) == 0 == warmdown(1.3, 0.72)
    assert warmdown(0.5, 0.0) == 1
    assert warmdown(0.5, 1.0) == 0.5


def test_momentum_rises_linearly_and_stays() -> None:
    values = np.array([momentum(step / 2000, 0.92, 0.99, 0.75) for step in range(2000)])
    expected = np.interp(np.arange(2000), [0, 1500], [0.92, 0.99])
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    assert (np.diff(values) >= 0).all()
    assert values[0] == 0.92
    assert values[1500] == values[-1] == 0.99
    assert momentum(0, 0.92, 0.99, 0) == 0.99


def test_cosine_equals_the_annealing_of_torch() -> None:
    steps = 21
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=5e-5)
    rates = []
    for step in range(steps + 1):
        rates.append(cosine(step / steps, 5e-4, 5e-5))
        assert rates[-1] == pytest.approx(scheduler.get_last_lr()[0], rel=1e-10)
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(5e-4, rel=1e-12)
    assert rates[-1] == pytest.approx(5e-5, rel=1e-12)
    assert (np.diff(rates) < 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weight_average_equals_the_weighted_sum(dtype: torch.dtype) -> None:
    decay, steps = 0.9, 12
    model = nn.Linear(4, 3, dtype=dtype)
    average = WeightAverage(model)
    seen = [{name: p.detach().double().clone() for name, p in model.named_parameters()}]
    for step in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(randn(*parameter.shape, seed=step))
        average.update(1 - decay)
        seen.append({name: p.detach().double().clone() for name, p in model.named_parameters()})
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for name, value in average.average.items():
        expected = decay**steps * seen[0][name]
        for step in range(1, steps + 1):
            expected += (1 - decay) * decay ** (steps - step) * seen[step][name]
        assert value.dtype == wide
        tolerance = 1e-14 if dtype is torch.float64 else 1e-6
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=tolerance)
    model.load_state_dict(average.average)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, average.average[name].to(dtype))


# The trainer


def trainer_and_batches(config: RunConfig, steps: int) -> tuple[Trainer, list[Tensor]]:
    """A trainer with random weights: some matrices of a new model have no gradient."""
    trainer = Trainer(config, CPU)
    weights = random_model(config.model, seed=1, dtype=torch.float32).state_dict()
    trainer.model.load_state_dict(weights)
    trainer.average = WeightAverage(trainer.model)
    rows, columns = config.train.batch_tokens // config.model.seq_len, config.model.seq_len + 1
    batches = [random_tokens(config.model, rows, columns, seed) for seed in range(steps)]
    return trainer, [batch.int() for batch in batches]


def train(trainer: Trainer, batches: list[Tensor], first_share: float = 0.0) -> list[float]:
    shares = np.linspace(first_share, 0.9, len(batches))
    pairs = zip(batches, shares, strict=True)
    return [float(trainer.train_step(b, trainer.plan(float(share), 0.1))) for b, share in pairs]


def assert_equal_trainers(trainer: Trainer, other: Trainer) -> None:
    assert trainer.step == other.step
    state, wanted = trainer.state_tensors(), other.state_tensors()
    for name in state.keys() | wanted.keys():
        if name in state and name in wanted:
            assert torch.equal(state[name], wanted[name]), name
        else:  # AdamW creates its state at the first step, and a warm-up leaves zeros
            assert name.startswith("optim.adamw.")
            assert not (state | wanted)[name].any(), name


def test_train_step_equals_one_step_by_hand() -> None:
    """Micro-batches of unequal size: the mean loss over all tokens, one optimizer step."""
    config = small_run_config(batch_tokens=5 * 16, micro_batch_tokens=5 * 16)
    trainer, (batch,) = trainer_and_batches(config, 1)
    trainer.micro_batch_tokens = 2 * 16  # 2, 2 and 1 sequences
    model = copy.deepcopy(trainer.model)
    optimizers = Optimizers(model, config.train, torch.float32)
    loss = model.mean_nats(batch, layer_order(config.model, recurrent=True))
    loss.backward()
    optimizers.step(0.5, 0.9)
    before = {name: tensor.clone() for name, tensor in trainer.average.average.items()}

    got = trainer.train_step(batch, StepPlan(True, 0.5, 0.9, averaging=0.1))

    assert float(got) == pytest.approx(float(loss.detach()), abs=1e-5)
    for name, parameter in trainer.model.named_parameters():
        wanted = model.get_parameter(name)
        torch.testing.assert_close(parameter, wanted, rtol=0, atol=1e-5)
        averaged = 0.9 * before[name] + 0.1 * parameter.detach()
        torch.testing.assert_close(trainer.average.average[name], averaged, rtol=0, atol=1e-6)
    assert trainer.step == 1


def test_trainer_state_round_trip_continues_bit_for_bit() -> None:
    config = small_run_config()
    trainer, batches = trainer_and_batches(config, 5)
    train(trainer, batches[:3])
    saved = {name: tensor.clone() for name, tensor in trainer.state_tensors().items()}
    resumed = Trainer(config, CPU)
    resumed.load_state_tensors(saved, step=3)
    losses = train(trainer, batches[3:], 0.5)
    assert train(resumed, batches[3:], 0.5) == losses
    assert_equal_trainers(resumed, trainer)


def test_warm_up_leaves_no_trace() -> None:
    config = small_run_config()
    trainer, batches = trainer_and_batches(config, 4)
    untouched, _ = trainer_and_batches(config, 4)
    rng = torch.get_rng_state()
    steps = 0
    forward = trainer.model.mean_nats

    def counted(*args: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        torch.rand(())  # a kernel may draw from the global generator as well
        return forward(*args)

    trainer.model.mean_nats = counted
    trainer.warm_up()
    # Two to try whether a micro-batch fits, then both orders and micro-batches: it did train.
    assert steps == 2 + config.train.warmup_steps * 2 * 2
    assert torch.equal(torch.get_rng_state(), rng)
    assert trainer.micro_batch_tokens == config.train.micro_batch_tokens
    assert no_gradients(trainer.model)
    assert_equal_trainers(trainer, untouched)
    assert train(trainer, batches) == train(untouched, batches)
    assert_equal_trainers(trainer, untouched)


def out_of_memory_over(rows: int, trainer: Trainer, every: int = 1) -> list[int]:
    """Let every n-th forward pass over more than `rows` sequences run out of memory from now on.

    Returns a list, to which the number of sequences of every pass is appended.
    """
    forward: Callable[..., Tensor] = trainer.model.mean_nats
    tried: list[int] = []
    failed = False

    def limited(tokens: Tensor, *args: object) -> Tensor:
        nonlocal failed
        tried.append(len(tokens))
        if failed:  # the next attempt starts without gradients, which take memory
            assert no_gradients(trainer.model)
        failed = len(tokens) > rows and len(tried) % every == 0
        if failed:
            raise torch.OutOfMemoryError("simulated")
        return forward(tokens, *args)

    trainer.model.mean_nats = limited
    return tried


@pytest.mark.parametrize(
    ("sequences", "fits", "every", "left"),
    [
        (8, 2, 1, 2),  # 8 -> 4 -> 2
        (15, 7, 1, 7),  # micro-batches of 7, 7 and 1
        (6, 1, 2, 1),  # 6 -> 3 -> 1; the gradient of a first micro-batch must be dropped
    ],
)
def test_warm_up_halves_the_micro_batch_until_it_fits(
    sequences: int, fits: int, every: int, left: int
) -> None:
    tokens = sequences * 16
    config = small_run_config(batch_tokens=tokens, micro_batch_tokens=tokens)
    trainer, batches = trainer_and_batches(config, 2)
    whole, _ = trainer_and_batches(config, 2)
    tried = out_of_memory_over(fits, trainer, every)
    trainer.warm_up()
    assert trainer.micro_batch_tokens == left * 16
    assert no_gradients(trainer.model)
    assert_equal_trainers(trainer, whole)

    tried.clear()
    losses = train(trainer, batches)
    assert tried == 2 * ([left] * (sequences // left) + [sequences % left] * (sequences % left > 0))
    assert losses == pytest.approx(train(whole, batches), abs=1e-5)
    for name, parameter in trainer.model.named_parameters():
        wanted = whole.model.get_parameter(name)
        torch.testing.assert_close(parameter, wanted, rtol=0, atol=1e-5, msg=name)


def test_warm_up_gives_up_when_no_sequence_fits() -> None:
    trainer, _ = trainer_and_batches(small_run_config(), 1)
    tried = out_of_memory_over(0, trainer)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.warm_up()
    assert tried == [2, 1]


def test_plan_follows_the_share_of_the_budget() -> None:
    config = small_run_config(
        recurrence_from=0.35, warmdown_share=0.5, momentum_warmup_share=0.5, short_until=0.4
    )
    trainer = Trainer(config, CPU)
    first = StepPlan(recurrent=False, lr_factor=1.0, momentum=0.92, averaging=0.0, short=True)
    assert trainer.plan(0.0, 0.0) == first
    assert trainer.plan(0.25, 0.1).momentum == pytest.approx(0.955)
    plan = trainer.plan(0.75, 0.1)
    assert plan.recurrent
    assert not plan.short
    assert plan.lr_factor == pytest.approx(0.5)
    assert plan.momentum == 0.99
    assert plan.averaging == pytest.approx(1 - math.exp(-0.1 / config.train.ema_share))
    assert not trainer.plan(0.3499, 0.1).recurrent
    assert trainer.plan(0.35, 0.1).recurrent
    assert trainer.plan(0.3999, 0.1).short
    assert not trainer.plan(0.4, 0.1).short


@pytest.mark.parametrize(
    ("recurrence_from", "short_until"),
    list(itertools.product([0.0, 0.35, 0.7, 1.0], [0.0, 0.35, 0.6, 1.0])),
)
def test_kinds_are_those_of_all_plans(recurrence_from: float, short_until: float) -> None:
    config = small_run_config(recurrence_from=recurrence_from, short_until=short_until)
    trainer = Trainer(config, CPU)
    kinds = {trainer.plan(share / 1000, 0.1).kind for share in range(1000)}
    assert trainer.kinds() == sorted(kinds, reverse=True)


def test_a_horizon_does_not_depend_on_the_number_of_steps() -> None:
    for steps in (10, 1000):
        old = math.prod(1 - averaging(0.3 / steps, 0.1) for _ in range(steps))
        assert old == pytest.approx(math.exp(-3))


def test_a_short_step_learns_from_halves_of_the_sequences() -> None:
    config = small_run_config(batch_tokens=3 * 16, micro_batch_tokens=16)
    trainer, (batch,) = trainer_and_batches(config, 1)
    halves = in_halves(batch)
    assert [row.tolist() for row in halves] == [
        row[start : start + 9].tolist() for start in (0, 8) for row in batch
    ]
    model = copy.deepcopy(trainer.model)
    optimizers = Optimizers(model, config.train, torch.float32)
    loss = model.mean_nats(halves, layer_order(config.model, recurrent=False))
    loss.backward()
    optimizers.step(0.5, 0.9)

    got = trainer.train_step(
        batch, StepPlan(recurrent=False, lr_factor=0.5, momentum=0.9, short=True)
    )

    assert float(got) == pytest.approx(float(loss.detach()), abs=1e-5)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), rtol=0, atol=1e-5)


# Federated averaging


def regression(seed: int = 0) -> nn.Sequential:
    """A model of two matrices and two vectors in float64."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + i))
    return model


def regression_chunks(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(randn(6, 5, seed=2 * i), 3 * randn(6, 2, seed=2 * i + 1)) for i in range(count)]


def regression_loss(model: nn.Module, chunk: tuple[Tensor, Tensor]) -> Tensor:
    return (model(chunk[0]) - chunk[1]).square().mean()


def serial_epochs(
    chunks_by_rank: list[list[tuple[Tensor, Tensor]]], epochs: int, fused: bool
) -> list[nn.Module]:
    """Plain loops of torch.optim.AdamW for every rank, weights averaged after every epoch."""
    models: list[nn.Module] = [regression() for _ in chunks_by_rank]
    optimizers = [
        torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.0, fused=fused) for m in models
    ]
    for epoch in range(epochs):
        for model, optimizer, chunks in zip(models, optimizers, chunks_by_rank, strict=True):
            optimizer.param_groups[0]["lr"] = 0.01 / (epoch + 1)
            for chunk in chunks:
                optimizer.zero_grad()
                regression_loss(model, chunk).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        with torch.no_grad():
            for parameters in zip(*(model.parameters() for model in models), strict=True):
                mean = torch.stack(parameters).mean(dim=0)
                for parameter in parameters:
                    parameter.copy_(mean)
    return models


def federated_epochs(num_chunks: int, epochs: int) -> nn.Module:
    model = regression()
    optimizer = FederatedAdamW(list(model.parameters()), grad_clip=1.0)
    for epoch in range(epochs):
        for chunk in regression_chunks(num_chunks):
            regression_loss(model, chunk).backward()
            optimizer.step(0.01 / (epoch + 1))
        optimizer.average_over_ranks()
    return model


def test_federated_adamw_of_one_rank_is_sequential_training_bit_for_bit() -> None:
    model = federated_epochs(num_chunks=5, epochs=3)
    (expected,) = serial_epochs([regression_chunks(5)], epochs=3, fused=True)
    assert_equal_parameters(model, expected)
    # And, up to rounding, AdamW without the fused kernel.
    (plain,) = serial_epochs([regression_chunks(5)], epochs=3, fused=False)
    for parameter, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=0, atol=1e-13)
    norms = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(m.parameters()))]).norm()
        for m in [regression()]
        for loss in [regression_loss(m, chunk) for chunk in regression_chunks(5)]
    ]
    assert min(norms) > 1, "gradients were clipped"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_chunks_of_ranks_partition_the_text(world_size: int) -> None:
    for count in range(8):
        chunks = [f"chunk {i}" for i in range(count)]
        shares = [Ranks(rank, world_size).mine(chunks) for rank in range(world_size)]
        assert sorted(chunk for share in shares for chunk in share) == chunks
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1
        for share in shares:
            assert share == sorted(share), "in text order"


def test_freezing_for_adaptation_keeps_embedding_and_first_blocks() -> None:
    config = small_config()
    model = random_model(config, seed=0)
    before = copy.deepcopy(model)
    freeze(model, 2)
    optimizer = FederatedAdamW([p for p in model.parameters() if p.requires_grad], grad_clip=1.0)
    model.mean_nats(random_tokens(config, 2, 17), layer_order(config, recurrent=True)).backward()
    optimizer.step(1e-3)
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("embedding", "blocks.0.", "blocks.1."))
        assert torch.equal(parameter, before.get_parameter(name)) == frozen, name
