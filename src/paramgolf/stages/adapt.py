"""Adapt the full-precision weights before quantization ("pre-quant TTT", PR #1735)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.optim.federated import FederatedAdamW
from paramgolf.optim.schedule import cosine
from paramgolf.runtime.console import Progress
from paramgolf.runtime.device import named_generator
from paramgolf.runtime.files import read_tensors, sha256_of_file, write_tensors
from paramgolf.runtime.graphs import Recorded
from paramgolf.scoring.bits_per_byte import Score
from paramgolf.stages.job import Job
from paramgolf.stages.validation import Validation


def run(job: Job) -> dict[str, Any]:
    """Adapt the trained weights, epoch by epoch; return the stage result."""
    config, runtime, ledger = job.config, job.runtime, job.ledger
    if not job.adapted_on:
        return {"scores": {}, "epochs": []}
    with ledger.phase("adapt: build model"):
        adaptation = _Adaptation(job)
        validation = Validation(job)
    epochs: list[dict[str, Any]] = []
    score: Score | None = None
    steps = config.adapt.epochs * adaptation.num_steps
    progress = job.reporter.progress("adapt", steps, "chunks")
    if runtime.on_gpu:
        with ledger.phase("adapt: warm up"):
            adaptation.record()
            runtime.synchronize()
    for epoch in range(config.adapt.epochs):
        with ledger.phase("adapt: steps"):
            loss = adaptation.epoch(epoch, progress)
            runtime.synchronize()
        last = epoch == config.adapt.epochs - 1
        record: dict[str, Any] = {"epoch": epoch + 1, "train_loss_nats": loss}
        if config.adapt.score_every_epoch or last:
            with ledger.phase("adapt: score"):
                score = validation.score(adaptation.model, job.adapted_on)
            record |= {"bpb": score.bpb, "label": score.label}
        epochs.append(record)
        job.run.event("adapt_epoch", **record)
        job.reporter.detail(_epoch_line(record))
    assert score is not None
    digest = ""
    if runtime.ranks.main:
        with ledger.phase("adapt: write"):
            write_tensors(job.run.adapted, dict(adaptation.model.named_parameters()))
            digest = sha256_of_file(job.run.adapted)
    seconds = ledger.seconds().get("adapt: steps", 0.0)
    tokens = config.adapt.epochs * adaptation.num_tokens
    return {
        "scores": {"adapted": dataclasses.asdict(score)},
        "epochs": epochs,
        "weights_sha256": digest,
        "tokens_per_second": {"adapt_steps": tokens / seconds if seconds else None},
    }


def _epoch_line(record: dict[str, Any]) -> str:
    scored = f"  {record['bpb']:.4f} BPB ({record['label']})" if "bpb" in record else ""
    return f"  adapt     epoch {record['epoch']}  loss {record['train_loss_nats']:.4f}{scored}"


class _Adaptation:
    """The model, its optimizer, and the text cut into chunks."""

    def __init__(self, job: Job) -> None:
        config, runtime = job.config, job.runtime
        self._config = config
        self._order = layer_order(config.model, recurrent=True)
        self.model = GPT(config.model, runtime.dtype)
        weights, _ = read_tensors(job.run.trained)
        self.model.load_state_dict(weights)
        self.model.to(runtime.device)
        freeze(self.model, config.adapt.frozen_blocks)
        if runtime.accelerated:
            self.model.accelerate()
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self._ranks = runtime.ranks
        self._optimizer = FederatedAdamW(trainable, config.adapt.grad_clip, self._ranks)
        seq_len = config.model.seq_len
        stream = job.text.stream(job.adapted_on[0], job.run.data)
        num_sequences = (len(stream) - 1) // seq_len
        if num_sequences == 0:
            raise UserError(
                f"the adaptation text is shorter than one sequence of {seq_len} tokens; provide a "
                "longer text, or set --adapt.text none"
            )
        tokens = torch.from_numpy(stream.astype("int32")).to(runtime.device)
        sequences = tokens[: num_sequences * seq_len + 1].unfold(0, seq_len + 1, seq_len)
        self._rows = min(config.adapt.chunk_tokens // seq_len, num_sequences)
        chunks = sequences.split(self._rows)
        if len(chunks) < self._ranks.size:
            raise UserError(
                f"the adaptation text has {len(chunks)} chunks of adapt.chunk_tokens = "
                f"{config.adapt.chunk_tokens:,}, fewer than the {self._ranks.size} ranks"
            )
        self._chunks = self._ranks.mine(chunks)
        """This rank's share: of W ranks, every W-th chunk, so that it covers all of the text."""
        self.num_steps = len(self._chunks)
        self.num_tokens = num_sequences * seq_len
        """Of all ranks, per epoch."""
        self._recorded: Recorded | None = None

    def record(self) -> None:
        """Record the step on synthetic tokens; weights and moments stay the same."""
        device = self.model.embedding.device
        shape = self._rows, self._config.model.seq_len + 1
        tokens = torch.randint(self._config.model.vocab_size, shape, dtype=torch.int32)
        factors = torch.full((self._rows,), 1 / self._rows), torch.tensor(0.0)
        examples = [tensor.to(device) for tensor in (tokens, *factors)]
        self._recorded = Recorded(self._plain_step, *examples, state=list(self.model.parameters()))
        self._optimizer.reset()

    def _step(self, sequences: Tensor, lr: float) -> Tensor:
        """Take one step; return the mean loss of the sequences, on the device."""
        rows = len(sequences)
        if self._recorded is None:
            return self._plain_step(sequences, torch.full((rows,), 1 / rows), lr)
        # A last, shorter chunk is padded, with sequences of no weight.
        weights = (torch.arange(self._rows) < rows) / rows
        padded = F.pad(sequences, (0, 0, 0, self._rows - rows))
        return self._recorded(padded, weights.pin_memory(), torch.tensor(lr).pin_memory())

    def _plain_step(self, sequences: Tensor, weights: Tensor, lr: float | Tensor) -> Tensor:
        with torch.enable_grad():
            loss = self.model.mean_nats(sequences, self._order, weights.to(sequences.device))
        loss.backward()
        self._optimizer.step(lr)
        return loss.detach()

    def epoch(self, epoch: int, progress: Progress) -> float:
        """Pass over this rank's chunks in random order, then average the weights over the ranks.

        A new order in every epoch learns faster than the reference's fixed order (1.0345 against
        1.0530 BPB in-sample after 6 epochs: docs/experiments/adaptation-chunk-order.md).

        Returns:
            The mean loss of all ranks' chunks in nats per token.
        """
        total = torch.zeros((), device=self.model.embedding.device)
        name = f"adapt:{epoch}:{self._ranks.rank}"
        order = torch.randperm(
            self.num_steps, generator=named_generator(self._config.seed, name)
        ).tolist()
        rates = self._learning_rates(epoch)
        for number, (index, lr) in enumerate(zip(order, rates, strict=True), start=1):
            total += self._step(self._chunks[index], lr)
            progress.update(epoch * self.num_steps + number)
        self._optimizer.average_over_ranks()
        sums, counts = self._ranks.agree(float(total), self.num_steps)
        mean = sums / counts
        if not math.isfinite(mean):
            raise UserError(
                f"the loss is {mean} in epoch {epoch + 1} of adaptation; lower --adapt.lr (the "
                "trained weights are kept)"
            )
        return mean

    def _learning_rates(self, epoch: int) -> Iterator[float]:
        adapt = self._config.adapt
        for step in range(self.num_steps):
            over_epochs = adapt.schedule == "cosine-over-epochs"
            share = epoch / adapt.epochs if over_epochs else step / self.num_steps
            yield cosine(share, adapt.lr, adapt.final_lr)


def freeze(model: GPT, num_blocks: int) -> None:
    """Exclude the embedding and the first blocks from training."""
    frozen: list[Tensor] = [model.embedding]
    for block in model.block_list()[:num_blocks]:
        frozen.extend(block.parameters())
    for parameter in frozen:
        parameter.requires_grad_(False)
