"""Score-first learning: a chunk of text is scored, then learned from ("legal TTT", PR #1493).

`score_then_learn` drives whatever scores a part of a text: a `WindowScorer` or a `DocumentScorer`
here, a coder in `coded_text`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.config import ScoreFirstConfig
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder
from paramgolf.optim.schedule import cosine
from paramgolf.runtime.device import reproducible
from paramgolf.runtime.graphs import Recorded, zero_state
from paramgolf.runtime.ranks import Ranks
from paramgolf.scoring.adapters import DocumentScorer
from paramgolf.scoring.windowed import WindowScorer
from paramgolf.scoring.windows import Windows, in_chunks

PASS_TOKENS = {"cpu": 2048, "cuda": 98_304}
"""Tokens per backward pass, by device type: a step holds the activations of this many at once."""

ScorePart = Callable[[int, int], int]
"""Score or code from one target on up to another, or further; return up to which."""


def score_first_losses(
    model: GPT,
    order: LayerOrder,
    config: ScoreFirstConfig,
    tokens: NDArray[np.uint16],
    windows: Sequence[Windows],
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Return the loss of every target in nats, (N,), of a model that learns as it scores.

    `config` says how it learns; the other arguments are those of `window_losses`. The ranks also
    share the gradients of a step.

    Raises:
        RuntimeError: if the windows do not score every target exactly once.
        UserError: if learning diverges.
    """
    if config.adapter_rank:
        batch_tokens = min(batch_tokens, PASS_TOKENS[model.embedding.device.type])
    count, how = len(tokens) - 1, (tokens, batch_tokens, progress, ranks)
    if config.adapter_rank:
        scorer = documents = DocumentScorer(model, order, config, *how)
        score_part = documents.score_documents
    else:
        scorer = WindowScorer(model, order, *how)
        score_part = by_windows(windows, count, model, config, scorer.score)
    score_then_learn(model, order, config, count, score_part, lambda: tokens, ranks)
    return scorer.losses()


def by_windows(
    windows: Sequence[Windows],
    num_targets: int,
    model: GPT,
    config: ScoreFirstConfig,
    score: Callable[[Sequence[Windows]], None],
) -> ScorePart:
    """Return what lets `score` score the next chunk's windows, of those of the whole text."""
    chunks = in_chunks(windows, num_targets, model.config.seq_len, config.chunk_tokens)
    waiting = iter(chunks)

    def score_part(_: int, until: int) -> int:
        score(next(waiting))
        return until

    return score_part


def score_then_learn(
    model: GPT,
    order: LayerOrder,
    config: ScoreFirstConfig,
    num_targets: int,
    score_part: ScorePart,
    stream: Callable[[], NDArray[np.integer]],
    ranks: Ranks | None = None,
    of_targets: int = 0,
) -> None:
    """Score a text part by part; let the model learn from each chunk but the last, once scored.

    The model's weights are restored at the end.

    Args:
        model: the model, on its device.
        order: the layer order to score and learn with.
        config: how to learn.
        num_targets: N.
        score_part: called for part after part, each up to the end of the next chunk.
        stream: returns the stream, known at least up to what is scored.
        ranks: share the gradients of a step; every rank must call this function.
        of_targets: targets of the text that this is the beginning of, over which the learning rate
            falls; 0: this is all of it.

    Raises:
        UserError: if learning diverges.
    """
    # Where only documents learn, all of them are one part.
    size = num_targets if config.optimizer == "none" else config.chunk_tokens
    chunk = end = 0
    with restored(model):
        learner = Learner(model, order, config, -(-max(num_targets, of_targets) // size), ranks)
        while end < num_targets:
            end = score_part(end, min((chunk + 1) * size, num_targets))
            while (chunk + 1) * size <= end < num_targets:
                learner.learn(chunk, stream())
                chunk += 1


@contextmanager
def restored(model: GPT) -> Iterator[None]:
    """Restore the model's parameters when the block ends."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), before, strict=True):
                parameter.copy_(value)
                parameter.grad = None


class Learner:
    """Updates a model's weights after each scored chunk, with one optimizer for the whole text."""

    def __init__(
        self,
        model: GPT,
        order: LayerOrder,
        config: ScoreFirstConfig,
        num_chunks: int,
        ranks: Ranks | None = None,
    ) -> None:
        """Learn all parameters of `model` over a text of `num_chunks` chunks."""
        self._model, self._order, self._config = model, order, config
        self._num_chunks = num_chunks
        self._ranks = ranks or Ranks()
        self._parameters = list(model.parameters())
        # Small updates would be lost in bfloat16, so float32 copies accumulate them.
        self._masters: list[Tensor] = [
            parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
            for parameter in self._parameters
        ]
        self._recorded: Recorded | None = None
        self._optimizer = torch.optim.AdamW(
            self._masters,
            lr=0.0,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            fused=True,
            capturable=model.embedding.is_cuda,
        )

    def learn(self, chunk: int, tokens: NDArray[np.integer]) -> None:
        """Take a step on one chunk.

        Args:
            chunk: its number; not the last chunk, and all earlier ones have been learned.
            tokens: the stream, known up to token (chunk + 1) * chunk_tokens.

        Raises:
            UserError: if the gradient is not finite.
        """
        config, seq_len = self._config, self._model.config.seq_len
        first = chunk * config.chunk_tokens
        part = torch.from_numpy(tokens[first : first + config.chunk_tokens + 1].astype(np.int32))
        rows = part.to(self._model.embedding.device).unfold(0, seq_len + 1, seq_len)
        lr = cosine(chunk / self._num_chunks, config.lr, 0.0)
        with reproducible():
            if not bool(self._step(rows, lr).isfinite()):
                raise UserError(
                    f"score-first learning diverged in chunk {chunk}: the gradient is not finite; "
                    "lower --score-first.lr"
                )

    def _step(self, rows: Tensor, lr: float) -> Tensor:
        """Take one step; return the norm of the gradient before clipping."""
        if not (self._model.accelerated and rows.is_cuda and self._ranks.size == 1):
            return self._plain_step(rows, lr)
        rate = torch.tensor(lr)
        if self._recorded is None:
            state = [*self._model.parameters(), *self._masters]
            device = self._model.embedding.device
            self._recorded = Recorded(self._plain_step, rows, rate.to(device), state=state)
            zero_state(self._optimizer)
        return self._recorded(rows, rate)

    def _plain_step(self, rows: Tensor, lr: float | Tensor) -> Tensor:
        rows_per_pass = max(1, PASS_TOKENS[rows.device.type] // self._model.config.seq_len)
        mine = self._ranks.mine(rows)
        with torch.enable_grad():
            for begin in range(0, len(mine), rows_per_pass):
                some = mine[begin : begin + rows_per_pass]
                loss = self._model.mean_nats(some, self._order) * (len(some) / len(rows))
                loss.backward()
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            gradient = parameter.grad
            master.grad = torch.zeros_like(master) if gradient is None else gradient.to(master)
            parameter.grad = None
            self._ranks.sum_(master.grad)
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._config.grad_clip, foreach=True)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                if parameter.data_ptr() != master.data_ptr():
                    parameter.copy_(master)
        return norm
