"""The state of training, warm-up, and one training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from paramgolf.config import RunConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.optim import schedule
from paramgolf.optim.ema import WeightAverage
from paramgolf.optim.exchange import GradientExchange, buckets_of
from paramgolf.optim.groups import Optimizers
from paramgolf.runtime.device import Runtime, named_generator, threads_of
from paramgolf.runtime.graphs import Recorded, on_recording_stream


@dataclass(frozen=True)
class StepPlan:
    """The schedule of one step: a pure function of the elapsed share of the budget."""

    recurrent: bool
    lr_factor: float
    momentum: float
    averaging: float = 0.0
    """Share of the step's weights in the average."""
    short: bool = False
    """Whether sequences are cut in halves."""

    @property
    def kind(self) -> tuple[bool, bool]:
        """What steps that launch the same kernels have in common."""
        return self.recurrent, self.short


class Trainer:
    """The model, its optimizers and its weight average."""

    def __init__(self, config: RunConfig, runtime: Runtime) -> None:
        """Create everything, with weights drawn from the run's seed."""
        self.config = config
        self.runtime = runtime
        self.model = GPT(config.model, runtime.dtype)
        # Threads would make its small decompositions many times slower, and change their last bits.
        with threads_of(1):
            self.model.init_weights(named_generator(config.seed, "init"))
        self.model.to(runtime.device)
        if runtime.accelerated:
            self.model.accelerate()
        self.optimizers = Optimizers(self.model, config.train, runtime.dtype, runtime.ranks)
        self._exchange = GradientExchange(buckets_of(self.model), runtime.ranks)
        self.average = WeightAverage(self.model)
        self.step = 0
        self.micro_batch_tokens = config.train.micro_batch_tokens
        self.batch_sequences = config.train.batch_tokens // config.model.seq_len
        self.share_of_batch = runtime.ranks.span(self.batch_sequences)
        self._orders = {on: layer_order(config.model, on) for on in (False, True)}
        self.recorded: dict[tuple[bool, bool], Recorded] = {}
        """The whole step by kind, from warm-up on; empty with several ranks or no GPU."""

    def plan(self, share: float, passed: float) -> StepPlan:
        """Return the plan of the next step when `share` of the budget has elapsed.

        `passed` is the part of it since the step before.
        """
        train = self.config.train
        return StepPlan(
            recurrent=share >= train.recurrence_from,
            lr_factor=schedule.warmdown(share, train.warmdown_share),
            momentum=schedule.momentum(
                share, train.momentum_start, train.momentum, train.momentum_warmup_share
            ),
            averaging=schedule.averaging(passed, train.ema_share),
            short=share < train.short_until,
        )

    def kinds(self) -> list[tuple[bool, bool]]:
        """Return the kinds of steps that this configuration takes, those with recurrence first."""
        train = self.config.train
        starts = sorted({0.0, train.recurrence_from, train.short_until} - {1.0})
        return sorted({self.plan(share, 0.0).kind for share in starts}, reverse=True)

    def train_step(self, sequences: Tensor, plan: StepPlan) -> Tensor:
        """Take one optimizer step on this rank's share of a batch.

        Args:
            sequences: (S, seq_len + 1) on the device, those of the batch in `share_of_batch`.
            plan: the same on all ranks.

        Returns:
            The mean loss of the whole batch in nats, a scalar on the device (reading it waits for
            the step to end).
        """
        recorded = self.recorded.get(plan.kind)
        factors = plan.lr_factor, plan.momentum, plan.averaging
        if recorded is None:
            loss = self._step(plan.kind, sequences, *factors)
        else:
            loss = recorded(sequences, *(torch.tensor(f).pin_memory() for f in factors))
        self.step += 1
        return loss

    def _step(
        self,
        kind: tuple[bool, bool],
        sequences: Tensor,
        lr_factor: float | Tensor,
        momentum: float | Tensor,
        averaging: float | Tensor,
    ) -> Tensor:
        recurrent, short = kind
        rows, batch = self.micro_batch_tokens // self.config.model.seq_len, self.batch_sequences
        if short:
            sequences, rows, batch = in_halves(sequences), 2 * rows, 2 * batch
        loss = torch.zeros((), dtype=torch.float32, device=self.runtime.device)
        micro_batches = sequences.split(rows)
        for number, micro_batch in enumerate(micro_batches, start=1):
            weight = len(micro_batch) / batch
            with torch.enable_grad():
                part = self.model.mean_nats(micro_batch, self._orders[recurrent]) * weight
            if number == len(micro_batches):
                self._exchange.arm()
            part.backward()
            loss += part.detach()
        self._exchange.finish()
        self.runtime.ranks.sum_(loss)
        self.optimizers.step(lr_factor, momentum)
        self.average.update(averaging)
        return loss

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Warm up both layer orders on synthetic tokens, then undo every effect.

        Halves the micro-batch until it fits the memory of every GPU.

        Args:
            progress: called with the number of synthetic steps done, and with the total.

        Raises:
            torch.OutOfMemoryError: if not even one sequence fits.
        """
        before = {name: tensor.detach().clone() for name, tensor in self._weights().items()}
        average = {name: tensor.clone() for name, tensor in self.average.average.items()}
        devices = [self.runtime.device] if self.runtime.on_gpu else []
        with torch.random.fork_rng(devices=devices):
            self._find_micro_batch()
            self._synthetic_steps(progress)
        with torch.no_grad():
            for name, tensor in self._weights().items():
                tensor.copy_(before[name])
            for name, tensor in self.average.average.items():
                tensor.copy_(average[name])
        self.optimizers.reset()
        self.step = 0

    def _find_micro_batch(self) -> None:
        seq_len, ranks = self.config.model.seq_len, self.runtime.ranks
        while sum(ranks.agree(not self._fits())):
            if self.micro_batch_tokens < 2 * seq_len:
                raise torch.OutOfMemoryError("not even one sequence fits in GPU memory")
            rows = self.micro_batch_tokens // seq_len // 2
            self.micro_batch_tokens = rows * seq_len
            torch.cuda.empty_cache()

    def _fits(self) -> bool:
        """Try a micro-batch on this rank alone, twice: the second time with gradients in memory."""
        reserved: list[Tensor] = []
        rows = min(self.micro_batch_tokens // self.config.model.seq_len, len(self.share_of_batch))
        try:
            if self.runtime.ranks.size > 1:  # for the exchange of gradients and updates
                reserved = [torch.empty_like(p) for p in self.model.parameters()]
            with on_recording_stream():
                for _ in range(2):
                    # The layer order that takes more memory.
                    self.model.mean_nats(self._synthetic(rows), self._orders[True]).backward()
        except torch.OutOfMemoryError:
            return False
        finally:
            reserved.clear()
            self.optimizers.zero_grad()
        return True

    def _synthetic_steps(self, progress: Callable[[int, int], None] | None) -> None:
        steps = self.config.train.warmup_steps
        if self.runtime.on_gpu and self.runtime.ranks.size == 1:
            self._record()
        kinds = self.kinds()
        for number, (recurrent, short) in enumerate(steps * kinds, start=1):
            tokens = self._synthetic(len(self.share_of_batch))
            self.train_step(tokens, StepPlan(recurrent, 0.1, 0.9, 0.1, short))
            if progress is not None:
                progress(number, steps * len(kinds))
        self.runtime.synchronize()

    def _record(self) -> None:
        """Record a step of every kind; its result is undone like that of other steps."""
        tokens = self._synthetic(len(self.share_of_batch))
        factors = torch.tensor([0.1, 0.9, 0.1], device=self.runtime.device).unbind()
        for kind in self.kinds():
            self.recorded[kind] = Recorded(partial(self._step, kind), tokens, *factors)

    def _synthetic(self, rows: int) -> Tensor:
        model = self.config.model
        shape = (rows, model.seq_len + 1)
        tokens = torch.randint(model.vocab_size, shape, dtype=torch.int32)
        return tokens.to(self.runtime.device)

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all that a resumed run needs, except the step, by name."""
        state = {f"model.{name}": tensor for name, tensor in self._weights().items()}
        state |= {f"average.{name}": tensor for name, tensor in self.average.average.items()}
        state |= {f"optim.{k}": tensor for k, tensor in self.optimizers.state_tensors().items()}
        return state

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore the state from `state_tensors` at `step`."""
        for name, parameter in self._weights().items():
            parameter.copy_(tensors[f"model.{name}"])
        for name, average in self.average.average.items():
            average.copy_(tensors[f"average.{name}"])
        prefix = "optim."
        self.optimizers.load_state_tensors(
            {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        )
        self.step = step


def in_halves(sequences: Tensor) -> Tensor:
    """Return the halves of sequences (S, T + 1) as sequences (2 S, T / 2 + 1), for an even T.

    The token between two halves is the last target of the first and the first input of the second,
    so that the targets are the same.
    """
    half = (sequences.size(1) - 1) // 2
    return torch.cat([sequences[:, : half + 1], sequences[:, half:]])
