"""Low-rank matrices that a document learns for itself while it is scored (LoRA, arXiv 2106.09685).

They are fresh for every document, and the weights of the model stay as they are. A document's
targets come in chunks; a chunk is scored before the matrices learn from it. A document ends with
the first token of the next one, which is its last target.

Shape suffixes: P places in the model, B documents side by side, T time, C targets of a chunk, D
width, R rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.config import ScoreFirstConfig
from paramgolf.data.shards import document_starts
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder
from paramgolf.runtime.device import reproducible
from paramgolf.scoring.windowed import WindowScorer


class Adapters:
    """The matrices of some documents side by side.

    Every visit of a block has its own, which read the block's normalised input and add to its
    output; so have the inputs of the output head. The first factor starts as the same random
    numbers everywhere (uniform, up to 1 / sqrt(D)), the second as 0.
    """

    def __init__(self, model: GPT, order: LayerOrder, config: ScoreFirstConfig) -> None:
        """Take the model, on its device, and how to learn."""
        self._model, self._order, self._config = model, order, config
        self.chunk_size = config.adapter_tokens
        places, width = len(order.encoder) + len(order.decoder) + 1, model.config.width
        generator = torch.Generator().manual_seed(0)  # the same in every process
        first_P1DR = torch.empty(places, 1, width, config.adapter_rank)
        first_P1DR.uniform_(-(width**-0.5), width**-0.5, generator=generator)
        wide = torch.promote_types(model.dtype, torch.float32)
        self._first_P1DR = first_P1DR.to(model.embedding.device, wide)

        self._factors: tuple[Tensor, ...] = ()

    def begin(self, documents: int) -> None:
        """Begin so many documents; as many as before use the same memory (recorded graphs do)."""
        first_PBDR = self._first_P1DR.repeat(1, documents, 1, 1)
        # The fused optimizer reads gradients as if they had the strides of the parameters.
        fresh = first_PBDR, torch.zeros_like(first_PBDR.mT, memory_format=torch.contiguous_format)
        if self._factors and self._factors[0].size(1) == documents:
            with torch.no_grad():
                for factor, value in zip(self._factors, fresh, strict=True):
                    factor.copy_(value)
        else:
            self._factors = tuple(factor.requires_grad_() for factor in fresh)
        # The optimizer of the accepted systems of the challenge.
        self._optimizer = torch.optim.AdamW(
            self._factors,
            lr=self._config.adapter_lr,
            betas=(0.0, 0.999),
            eps=1e-10,
            weight_decay=0.0,
            fused=True,
        )

    def __call__(self, place: int, x_BTD: Tensor) -> Tensor:
        """Return what the first B documents add at a place, (B, T, D): `adapt` of `GPT.forward`."""
        first_BDR, second_BRD = (
            factor_PB[place, : len(x_BTD)].to(x_BTD.dtype) for factor_PB in self._factors
        )
        return x_BTD @ first_BDR @ second_BRD

    def nats(self, windows_BT: Tensor, next_BC: Tensor) -> Tensor:
        """Return the losses of each window's last C targets, the tokens `next_BC`, (B, C)."""
        count = next_BC.size(1)
        hidden = self._model(windows_BT, self._order, last=count, adapt=self)
        return self._model.predicted_nats(hidden, windows_BT[:, -count:], next_BC)

    def learn(self, nats_BC: Tensor) -> None:
        """Take a step of each document on its own losses, which `nats` returned.

        Raises:
            UserError: if a loss is not finite.
        """
        loss = nats_BC.mean(1).sum()
        if not bool(loss.isfinite()):
            raise UserError(
                "score-first learning diverged in a document: the loss is not finite; lower "
                "--score-first.adapter-lr"
            )
        # The engine computes no gradient of the weights then.
        for factor, gradient in zip(
            self._factors, torch.autograd.grad(loss, self._factors), strict=True
        ):
            factor.grad = gradient.contiguous()
        self._optimizer.step()


def window_of_chunk(begin: int, chunk: int, size: int, seq_len: int) -> tuple[int, int]:
    """Return start and end of the window that scores a chunk of a document that starts at `begin`.

    It ends with the chunk, and holds no token of earlier documents.
    """
    end = begin + (chunk + 1) * size
    return max(begin, end - seq_len), end


class DocumentScorer(WindowScorer):
    """Scores whole documents of one stream, several side by side, which learn for themselves."""

    def __init__(
        self,
        model: GPT,
        order: LayerOrder,
        config: ScoreFirstConfig,
        tokens: NDArray[np.uint16],
        *how: Any,
    ) -> None:
        """Take the arguments of `WindowScorer` and how to learn; tokens[0] begins documents."""
        super().__init__(model, order, tokens, *how)
        self._adapters = Adapters(model, order, config)
        self._starts = np.append(document_starts(tokens, int(tokens[0])), len(tokens) - 1)

    @reproducible()
    def score_documents(self, first: int, until: int) -> int:
        """Score the documents that begin at `first` and from there on before `until`.

        Returns the end of the last one.
        """
        low, high = np.searchsorted(self._starts[:-1], [first, until])
        lengths = np.diff(self._starts[low : high + 1])
        # The longest first: those that still go on are the first of a batch.
        longest = low + np.argsort(-lengths, kind="stable")
        batches = [
            longest[begin : begin + self._batch] for begin in range(0, len(longest), self._batch)
        ]
        for batch in self._ranks.mine(batches):
            self._score_batch(self._starts[batch], self._starts[batch + 1])
        return int(self._starts[high])

    def _score_batch(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        size, device = self._adapters.chunk_size, self._stream.device
        self._adapters.begin(len(starts))
        lengths, last = ends - starts, len(self._stream) - 1
        for chunk in range(-(-int(lengths[0]) // size)):
            open_now, open_next = ((lengths > (chunk + i) * size).sum() for i in (0, 1))
            begin, end = window_of_chunk(0, chunk, size, self._seq_len)
            begins = torch.from_numpy(starts[:open_now, None]).to(device)
            positions = (begins + torch.arange(begin, end, device=device)).clamp(max=last)
            targets = positions[:, -size:]
            next_tokens = self._stream[(targets + 1).clamp(max=last)]
            nats = self._adapters.nats(self._stream[positions], next_tokens)
            of_document = targets < torch.from_numpy(ends[:open_now, None]).to(device)
            self._keep(targets[of_document], nats.detach()[of_document])
            self._tell(int(of_document.sum()))
            if open_next:
                self._adapters.learn(nats[:open_next])
