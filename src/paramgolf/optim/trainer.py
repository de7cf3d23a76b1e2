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
from paramgolf.runtime.device import Runtime, named_generator
from paramgolf.runtime.graphs import Recorded, on_recording_stream


@dataclass(frozen=True)
class StepPlan:
    """The schedule of one step: a pure function of its number and the elapsed share."""

    recurrent: bool
    lr_factor: float
    momentum: float


class Trainer:
    """The model, its optimizers and its weight average."""

    def __init__(self, config: RunConfig, runtime: Runtime) -> None:
        """Create everything, with weights drawn from the run's seed."""
        self.config = config
        self.runtime = runtime
        self.model = GPT(config.model, runtime.dtype)
        self.model.init_weights(named_generator(config.seed, "init"))
        self.model.to(runtime.device)
        if runtime.accelerated:
            self.model.accelerate()
        self.optimizers = Optimizers(self.model, config.train, runtime.dtype, runtime.ranks)
        self._exchange = GradientExchange(buckets_of(self.model), runtime.ranks)
        self.average = WeightAverage(self.model, config.train.ema_decay)
        self.step = 0
        self.micro_batch_tokens = config.train.micro_batch_tokens
        self.batch_sequences = config.train.batch_tokens // config.model.seq_len
        self.share_of_batch = runtime.ranks.span(self.batch_sequences)
        self._orders = {on: layer_order(config.model, on) for on in (False, True)}
        self.recorded: dict[bool, Recorded] = {}
        """The whole step by layer order, from warm-up on; empty with several ranks or no GPU."""

    def plan(self, share: float) -> StepPlan:
        """Return the plan of the next step when `share` of the budget has elapsed."""
        train = self.config.train
        return StepPlan(
            recurrent=share >= train.recurrence_from,
            lr_factor=schedule.warmdown(share, train.warmdown_share),
            momentum=schedule.momentum(
                self.step, train.momentum_start, train.momentum, train.momentum_warmup_steps
            ),
        )

    def train_step(self, sequences: Tensor, plan: StepPlan) -> Tensor:
        """Take one optimizer step on this rank's share of a batch.

        Args:
            sequences: (S, seq_len + 1) on the device, those of the batch in `share_of_batch`.
            plan: the same on all ranks.

        Returns:
            The mean loss of the whole batch in nats, a scalar on the device (reading it waits for
            the step to end).
        """
        recorded = self.recorded.get(plan.recurrent)
        if recorded is None:
            loss = self._step(plan.recurrent, sequences, plan.lr_factor, plan.momentum)
        else:
            factors = (torch.tensor(f).pin_memory() for f in (plan.lr_factor, plan.momentum))
            loss = recorded(sequences, *factors)
        self.step += 1
        return loss

    def _step(
        self,
        recurrent: bool,
        sequences: Tensor,
        lr_factor: float | Tensor,
        momentum: float | Tensor,
    ) -> Tensor:
        rows = self.micro_batch_tokens // self.config.model.seq_len
        loss = torch.zeros((), dtype=torch.float32, device=self.runtime.device)
        micro_batches = sequences.split(rows)
        for number, micro_batch in enumerate(micro_batches, start=1):
            weight = len(micro_batch) / self.batch_sequences
            with torch.enable_grad():
                part = self.model.mean_nats(micro_batch, self._orders[recurrent]) * weight
            if number == len(micro_batches):
                self._exchange.arm()
            part.backward()
            loss += part.detach()
        self._exchange.finish()
        self.runtime.ranks.sum_(loss)
        self.optimizers.step(lr_factor, momentum)
        self.average.update()
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
        for number in range(steps):
            for recurrent in (True, False):
                tokens = self._synthetic(len(self.share_of_batch))
                self.train_step(tokens, StepPlan(recurrent, lr_factor=0.1, momentum=0.9))
                if progress is not None:
                    progress(2 * number + 2 - recurrent, 2 * steps)
        self.runtime.synchronize()

    def _record(self) -> None:
        """Record a step of either layer order; its result is undone like that of other steps."""
        tokens = self._synthetic(len(self.share_of_batch))
        factors = torch.tensor([0.1, 0.9], device=self.runtime.device).unbind()
        for recurrent in (True, False):
            step = partial(self._step, recurrent)
            self.recorded[recurrent] = Recorded(step, tokens, *factors)

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
