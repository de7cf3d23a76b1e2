"""Score-first adaptation: a chunk of text is scored, then learned from ("legal TTT", PR #1493).

One walk over the text serves scoring and coding: what visits a chunk's windows has seen all of its
tokens when the walk goes on to learn from them.
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
from paramgolf.runtime.ranks import Ranks
from paramgolf.scoring.windows import Windows, in_chunks

PASS_TOKENS = {"cpu": 2048, "cuda": 98_304}
"""Targets of which a step holds the activations at once, by the type of the device."""

Visit = Callable[[Sequence[Windows]], NDArray[np.integer]]
"""Scores or codes windows; gives the stream, known at least as far as these windows predict."""


def walk(
    model: GPT,
    order: LayerOrder,
    config: ScoreFirstConfig,
    windows: Sequence[Windows],
    num_targets: int,
    visit: Visit,
    ranks: Ranks | None = None,
) -> None:
    """Visit all windows: at once with a fixed predictor, else chunk by chunk, learning between.

    The model is afterwards what it was before.

    Args:
        model: on its device.
        order: the layer order.
        config: how to learn.
        windows: of the whole text.
        num_targets: N.
        visit: called once with the windows of every chunk, in order.
        ranks: share the gradients of a step out; all call this.

    Raises:
        UserError: if learning diverges.
    """
    if not config.learns:
        visit(windows)
        return
    chunks = in_chunks(windows, num_targets, model.config.seq_len, config.chunk_tokens)
    with restored(model):
        learner = Learner(model, order, config, len(chunks), ranks)
        for number, chunk in enumerate(chunks):
            tokens = visit(chunk)
            if number < len(chunks) - 1:
                learner.learn(number, tokens)


@contextmanager
def restored(model: GPT) -> Iterator[None]:
    """The model's parameters are afterwards what they were before."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), before, strict=True):
                parameter.copy_(value)
                parameter.grad = None


class Learner:
    """The state of a predictor that learns: its weights and the optimizer's moments."""

    def __init__(
        self,
        model: GPT,
        order: LayerOrder,
        config: ScoreFirstConfig,
        num_chunks: int,
        ranks: Ranks | None = None,
    ) -> None:
        """Learn with all parameters of `model`, over a text of `num_chunks` chunks."""
        self._model, self._order, self._config = model, order, config
        self._num_chunks = num_chunks
        self._ranks = ranks or Ranks()
        self._parameters = list(model.parameters())
        # A parameter in bfloat16 would swallow small steps: those are summed up in float32.
        self._masters: list[Tensor] = [
            parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
            for parameter in self._parameters
        ]
        self._optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            self._optimizer = torch.optim.SGD(
                self._masters, lr=0.0, momentum=config.momentum, foreach=True
            )
        else:
            self._optimizer = torch.optim.AdamW(
                self._masters, lr=0.0, betas=(0.9, 0.999), weight_decay=0.0, fused=True
            )

    def learn(self, chunk: int, tokens: NDArray[np.integer]) -> None:
        """Take the steps on one chunk of a stream whose targets are known so far.

        Args:
            chunk: its number; it is not the last, and all chunks before it were learned.
            tokens: (at least (chunk + 1) * chunk_tokens + 1,) the stream.

        Raises:
            UserError: if the loss is not finite.
        """
        config, seq_len = self._config, self._model.config.seq_len
        first = chunk * config.chunk_tokens
        own = torch.from_numpy(tokens[first : first + config.chunk_tokens + 1].astype(np.int32))
        rows = own.to(self._model.embedding.device).unfold(0, seq_len + 1, seq_len)
        lr = cosine(chunk / self._num_chunks, config.lr, 0.0)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        with reproducible():
            for _ in range(config.epochs):
                self._step(rows, chunk)

    def _step(self, rows: Tensor, chunk: int) -> None:
        most = max(1, PASS_TOKENS[rows.device.type] // self._model.config.seq_len)
        mine = self._ranks.mine(rows)
        with torch.enable_grad():
            for begin in range(0, len(mine), most):
                some = mine[begin : begin + most]
                loss = self._model.mean_nats(some, self._order) * (len(some) / len(rows))
                loss.backward()
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            gradient = parameter.grad
            master.grad = torch.zeros_like(master) if gradient is None else gradient.to(master)
            parameter.grad = None
            self._ranks.sum_(master.grad)
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._config.grad_clip, foreach=True)
        if not bool(norm.isfinite()):
            raise UserError(
                f"score-first learning diverges in chunk {chunk}: the gradient is not finite; "
                "lower --score-first.lr"
            )
        self._optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                if parameter.data_ptr() != master.data_ptr():
                    parameter.copy_(master)
