"""Train for a budget of seconds or steps; the result is the moving average of the weights."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paramgolf.data.batches import SequenceSampler
from paramgolf.errors import UserError
from paramgolf.model.gpt import num_parameters
from paramgolf.optim.trainer import Trainer
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.files import read_tensors, sha256_of_file, write_tensors
from paramgolf.runtime.ranks import Ranks
from paramgolf.runtime.signals import Stopped, deferred
from paramgolf.stages.job import Job
from paramgolf.stages.validation import Validation

_SECONDS_BETWEEN_EVENTS = 3.0


def run(job: Job) -> dict[str, Any]:
    """Train, write the averaged weights and score them; return the stage result."""
    config, ranks = job.config, job.runtime.ranks
    with job.ledger.phase("train: build model"):
        trainer = Trainer(config, job.runtime)
    job.reporter.detail(
        f"  model     {num_parameters(trainer.model):,} parameters on {job.runtime.device}"
    )
    new_seconds = 0.0
    # A run that was stopped while it scored the trained weights does not train again.
    if not ranks.from_main(job.run.trained.exists()):
        new_seconds = _train(job, trainer)
    with job.ledger.phase("train: read checkpoint"):
        weights, measured = read_tensors(job.run.trained)
        digest = sha256_of_file(job.run.trained)
        trainer.model.load_state_dict(weights)
    seconds = measured["seconds"]
    job.ledger.add("train: steps", seconds, earlier=seconds - new_seconds)
    with job.ledger.phase("train: score"):
        score = Validation(job).score(trainer.model, [])
    return {
        "scores": {"ema": dataclasses.asdict(score)},
        "parameters": num_parameters(trainer.model),
        "tokens": measured["steps"] * config.train.batch_tokens,
        "weights_sha256": digest,
        **measured,
    }


def _train(job: Job, trainer: Trainer) -> float:
    """Train to the end; write the averaged weights and the measurements.

    Returns:
        The seconds of this process's steps.
    """
    config, runtime, ledger = job.config, job.runtime, job.ledger
    if runtime.accelerated:
        with ledger.phase("train: warm up"):
            trainer.warm_up(job.reporter.progress("warm-up", unit="steps").update)
        if trainer.micro_batch_tokens < config.train.micro_batch_tokens:
            tokens = trainer.micro_batch_tokens
            job.run.event("micro_batch_reduced", micro_batch_tokens=tokens)
            job.reporter.line(f"  memory    micro-batch reduced to {tokens:,} tokens")
        torch.cuda.reset_peak_memory_stats()
    with ledger.phase("train: read checkpoint"):
        loop = _Loop(job, trainer)
        loop.resume()
    with deferred() as preempted:
        with ledger.shown("train: steps"):
            loop.run_to_the_end(preempted)
        with ledger.phase("train: write"):
            loop.require_finite_weights()
            _require_equal_weights(trainer)
            if runtime.ranks.main:
                write_tensors(
                    job.run.trained,
                    trainer.average.average,
                    steps=trainer.step,
                    seconds=loop.clock.elapsed,
                    micro_batch_tokens=trainer.micro_batch_tokens,
                    last_train_loss_nats=loop.last_loss,
                    tokens_per_second=loop.clock.rates(),
                    peak_gpu_bytes=torch.cuda.max_memory_allocated() if runtime.on_gpu else None,
                )
                loop.checkpoint_file.unlink(missing_ok=True)
        if sum(runtime.ranks.agree(preempted())):
            raise Stopped(" after the last step of training")
    return loop.clock.elapsed - loop.start_elapsed


def _require_equal_weights(trainer: Trainer) -> None:
    """Raise a UserError if the ranks have trained different weights."""
    ranks = trainer.runtime.ranks
    if ranks.size == 1:
        return
    averages = trainer.average.average.values()
    checksum = sum(float(tensor.double().abs().sum()) for tensor in averages)
    if _differs_between(ranks, checksum):
        raise UserError(
            "the ranks have different weights after training: one of their machines miscomputes"
        )


def _differs_between(ranks: Ranks, value: float) -> bool:
    return bool(sum(ranks.agree(value != ranks.from_main(value))))


class _Clock:
    """Seconds of training, measured at steps that the device has finished.

    The host runs one step ahead of the device, so that the device never waits. At the start of a
    step the clock therefore shows when the step before the previous one finished.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._last = time.monotonic()
        self.elapsed = 0.0
        self.step_seconds = 0.0
        self._seconds = {False: 0.0, True: 0.0}
        self._tokens = {False: 0, True: 0}

    def start(self, elapsed: float) -> None:
        """Start at the seconds that an interrupted run has used already."""
        self._runtime.synchronize()
        self.elapsed = elapsed
        self._last = time.monotonic()

    def tick(self, tokens: int, recurrent: bool) -> None:
        """Record that a step of `tokens` tokens has just finished."""
        now = time.monotonic()
        self.step_seconds = now - self._last
        self.elapsed += self.step_seconds
        self._seconds[recurrent] += self.step_seconds
        self._tokens[recurrent] += tokens
        self._last = now

    def pause(self) -> None:
        """Count the time since the last tick (a checkpoint), but not as part of a step."""
        self.elapsed += time.monotonic() - self._last
        self._last = time.monotonic()

    def rates(self) -> dict[str, float | None]:
        """Return tokens per second with recurrence off, on, and over all steps of this process."""

        def rate(*states: bool) -> float | None:
            seconds = sum(self._seconds[state] for state in states)
            tokens = sum(self._tokens[state] for state in states)
            return tokens / seconds if seconds else None

        return {
            "train_recurrence_off": rate(False),
            "train_recurrence_on": rate(True),
            "train": rate(False, True),
        }


@dataclasses.dataclass
class _PendingStep:
    """A step that the device may not have finished yet."""

    loss: Tensor
    """On the host; valid after `finished`."""
    finished: torch.cuda.Event | None
    recurrent: bool
    lr_factor: float


class _Loop:
    """Runs steps until the budget is spent."""

    def __init__(self, job: Job, trainer: Trainer) -> None:
        self.trainer = trainer
        self.clock = _Clock(job.runtime)
        self.start_elapsed = 0.0
        """Seconds of training before this process."""
        self.last_loss = math.nan
        self.checkpoint_file = job.run.path / "checkpoints" / "training.safetensors"
        self._run, self._ranks = job.run, job.runtime.ranks
        self._config = config = job.config.train
        shards = job.text.shards("train", job.run.data)
        self._sampler = SequenceSampler(shards, job.config.model.seq_len, job.config.seed, "train")
        self._budget = config.max_seconds - config.reserve_seconds
        total, unit = (config.max_steps, "steps") if config.max_steps else (self._budget, "s")
        self._progress = job.reporter.progress("train", total, unit)
        self._last_checkpoint = time.monotonic()
        self._last_event = 0.0
        self._last_share = 0.0

    def resume(self) -> None:
        """Continue from the last checkpoint, if one exists."""
        if not self._ranks.from_main(self.checkpoint_file.exists()):
            return
        tensors, notes = read_tensors(self.checkpoint_file)
        try:
            self.trainer.load_state_tensors(tensors, notes["step"])
            self.start_elapsed = notes["elapsed_seconds"]
            self.last_loss = notes["loss_nats"]
            self._last_share = self.start_elapsed / self._budget
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.checkpoint_file} is not a training checkpoint of this run; delete it to "
                "train from the start"
            ) from error
        if _differs_between(self._ranks, self.trainer.step):
            raise UserError(
                f"{self.checkpoint_file} is not the same on all machines: the ranks need a shared "
                "folder"
            )
        self._run.event("training_resumed", **notes)

    def run_to_the_end(self, preempted: Callable[[], bool]) -> None:
        """Run the remaining steps.

        Raises:
            Stopped: if a rank was asked to stop, after writing a checkpoint.
        """
        self._run.event(
            "clock_started",
            elapsed_seconds=self.start_elapsed,
            recorded=bool(self.trainer.recorded),
            fused=self.trainer.model.fused,
            flash_attention=self.trainer.model.uses_flash_attention(),
        )
        self.clock.start(self.start_elapsed)
        pending: _PendingStep | None = None
        sequences = self._next_sequences()
        while True:
            share, spent, stop = self._decide(pending is not None, preempted())
            if spent or stop:
                break
            step = self._launch(sequences, share)
            sequences = self._next_sequences()  # while the device works
            if pending is not None:
                self._complete(pending, self.trainer.step - 1)
            pending = step
            if self._checkpoint_due():
                self._complete(pending, self.trainer.step)
                pending = None
                self._checkpoint()
        if pending is not None:
            self._complete(pending, self.trainer.step)
        if not spent and self._ranks.main:
            self._checkpoint()
        step, elapsed = self.trainer.step, self.clock.elapsed
        self._run.event("clock_stopped", step=step, elapsed_seconds=elapsed)
        if not spent:
            self._ranks.barrier()
            raise Stopped(f" after step {self.trainer.step}, with a checkpoint")

    def _decide(self, one_pending: bool, preempted: bool) -> tuple[float, bool, bool]:
        """Agree with the other ranks on the next step.

        Returns:
            The elapsed share of the budget and whether it is spent, both by rank 0's clock, and
            whether any rank was asked to stop.
        """
        share, spent = self._share(), self._spent(one_pending)
        if not self._ranks.main:
            share, spent = 0.0, False
        share, spent, stop = self._ranks.agree(share, spent, preempted)
        return share, bool(spent), bool(stop)

    def _share(self) -> float:
        if self._config.max_steps:
            return self.trainer.step / self._config.max_steps
        return self.clock.elapsed / self._budget

    def _spent(self, one_pending: bool) -> bool:
        if self._config.max_steps:
            return self.trainer.step >= self._config.max_steps
        coming = (1 + one_pending) * self.clock.step_seconds
        return self.clock.elapsed + coming > self._budget

    def _next_sequences(self) -> Tensor:
        first, share = self.trainer.step * self.trainer.batch_sequences, self.trainer.share_of_batch
        sequences = self._sampler.sequences(first + share.start, len(share))
        if self.trainer.runtime.on_gpu:
            return sequences.pin_memory().to(self.trainer.runtime.device, non_blocking=True)
        return sequences

    def _launch(self, sequences: Tensor, share: float) -> _PendingStep:
        steps = self._config.max_steps
        plan = self.trainer.plan(min(1.0, share), 1 / steps if steps else share - self._last_share)
        self._last_share = share
        loss = self.trainer.train_step(sequences, plan)
        if not self.trainer.runtime.on_gpu:
            return _PendingStep(loss, None, plan.recurrent, plan.lr_factor)
        on_host = torch.empty((), dtype=loss.dtype, pin_memory=True)
        on_host.copy_(loss, non_blocking=True)
        finished = torch.cuda.Event()
        finished.record()
        return _PendingStep(on_host, finished, plan.recurrent, plan.lr_factor)

    def _complete(self, step: _PendingStep, number: int) -> None:
        """Wait for a step, check its loss and report it."""
        if step.finished is not None:
            step.finished.synchronize()
        self.clock.tick(self._config.batch_tokens, step.recurrent)
        self.last_loss = step.loss.item()
        if not math.isfinite(self.last_loss):
            self._run.event("loss_not_finite", step=number, loss=str(self.last_loss))
            raise self._diverged(f"the training loss is {self.last_loss} at step {number}")
        config = self._config
        rate = config.batch_tokens / self.clock.step_seconds
        elapsed = self.clock.elapsed
        if number == 1 or number % 50 == 0 or elapsed - self._last_event >= _SECONDS_BETWEEN_EVENTS:
            self._last_event = elapsed
            self._run.event(
                "train",
                step=number,
                elapsed_seconds=round(elapsed, 3),
                loss_nats=self.last_loss,
                tokens_per_second=round(rate),
                lr_factor=round(step.lr_factor, 5),
                recurrent=step.recurrent,
            )
        self._progress.update(
            number if config.max_steps else elapsed,
            details=("" if config.max_steps else f"step {number}  ") + f"loss {self.last_loss:.4f}",
            rate=rate,
        )

    def _diverged(self, what: str) -> UserError:
        kept = (
            f"the last good checkpoint is kept in {self.checkpoint_file}"
            if self.checkpoint_file.exists()
            else "there is no checkpoint (--train.checkpoint-seconds sets how often)"
        )
        return UserError(
            f"{what}; {kept}; lower --train.matrix-lr or --train.embedding-lr, or change --seed"
        )

    def require_finite_weights(self) -> None:
        """Raise a UserError if the last step, despite a finite loss, left weights that are not."""
        step = self.trainer.step
        if not all(bool(t.isfinite().all()) for t in self.trainer.state_tensors().values()):
            self._run.event("weights_not_finite", step=step)
            raise self._diverged(f"the weights are not finite after step {step}")

    def _checkpoint_due(self) -> bool:
        seconds = self._config.checkpoint_seconds
        passed = time.monotonic() - self._last_checkpoint
        return self._ranks.main and 0 < seconds <= passed

    def _checkpoint(self) -> None:
        """Write the training state, which is the same on every rank; only rank 0 calls this."""
        self.require_finite_weights()
        notes = {"step": self.trainer.step, "elapsed_seconds": self.clock.elapsed}
        write_tensors(
            self.checkpoint_file, self.trainer.state_tensors(), **notes, loss_nats=self.last_loss
        )
        self.clock.pause()
        self._run.event(
            "checkpoint", **notes, seconds=self.clock.elapsed - notes["elapsed_seconds"]
        )
        self._last_checkpoint = time.monotonic()
