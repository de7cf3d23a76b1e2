"""Predictions token by token, for coding and generation: all read a text through one class.

Shape suffixes: B sequences side by side, T time, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paramgolf.model.gpt import GPT, Adapt
from paramgolf.model.order import LayerOrder
from paramgolf.model.past import Past
from paramgolf.runtime.graphs import Recorded


class NextToken:
    """Predicts the token after those that it has read, with the model's current weights.

    On a GPU the step that reads one token is recorded at its first use, so that it does not wait
    for Python. Equal calls in equal order return equal bits within `runtime.device.reproducible`.
    """

    def __init__(self, model: GPT, order: LayerOrder, adapt: Adapt | None = None) -> None:
        """Take the model, on its device, the order to compute in, and `adapt` of `GPT.forward`."""
        self._model, self._order, self._adapt = model, order, adapt
        self._allocate(0)

    def begin(self, rows: int) -> None:
        """Forget all tokens: `rows` new sequences of up to seq_len tokens begin."""
        if rows != self._rows:
            self._allocate(rows)
        self._past.length = 0

    def _allocate(self, rows: int) -> None:
        model = self._model
        self._past = Past(model.config, self._order, rows, model.embedding)
        self._recorded: Recorded | None = None
        self._rows = rows

    @torch.no_grad()
    def read(self, tokens_BT: Tensor) -> Tensor:
        """Append tokens, integers on the CPU; return the logits of the next ones.

        They are (B, V), float32 or wider, on the model's device. The device is not waited for.
        """
        device = self._model.embedding.device
        if tokens_BT.size(1) > 1 or device.type == "cpu":
            return self._logits(tokens_BT.to(device))
        arguments = tokens_BT.int(), torch.tensor([self._past.length])
        if self._recorded is None:
            examples = (argument.to(device) for argument in arguments)
            self._recorded = Recorded(self._logits_at, *examples)
        logits_BV = self._recorded(*arguments)
        self._past.keep_last()
        return logits_BV

    def _logits(self, tokens_BT: Tensor) -> Tensor:
        hidden = self._model(tokens_BT, self._order, past=self._past, last=1, adapt=self._adapt)
        return self._model.predicted_logits(hidden[:, -1], tokens_BT[:, -1])

    def _logits_at(self, tokens_B1: Tensor, position: Tensor) -> Tensor:
        self._past.position = position
        logits_BV = self._logits(tokens_B1)
        self._past.position = None
        return logits_BV
