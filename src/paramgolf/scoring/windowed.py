"""The losses of a text under a fixed model, each target scored in exactly one window.

A model that learns while it scores is driven from above: see `score_first`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder
from paramgolf.runtime.graphs import Recorded
from paramgolf.runtime.ranks import Ranks
from paramgolf.scoring.windows import Windows

_MIN_RECORDED = 4  # batches


def window_losses(
    model: GPT,
    order: LayerOrder,
    tokens: NDArray[np.uint16],
    windows: Sequence[Windows],
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Return the loss of every target in nats, (N,), float32 or wider.

    Args:
        model: the model, on its device; its weights do not change.
        order: the layer order to score with.
        tokens: (N + 1,) the stream.
        windows: from `plain_windows` or `sliding_windows`.
        batch_tokens: tokens per forward pass.
        progress: called with the number of targets scored and the total.
        ranks: share the batches; every rank gets all losses.

    Raises:
        RuntimeError: if the windows do not score every target exactly once.
    """
    scorer = WindowScorer(model, order, tokens, batch_tokens, progress, ranks)
    scorer.score(windows)
    return scorer.losses()


class WindowScorer:
    """Scores windows of one stream in batches.

    Only scored positions pass through all of the last block and the output head. Windows that
    extend past the text are padded (the model is causal, so no scored position sees the padding).
    An accelerated model gets padded batches too, so that there is only one shape to record.

    Attributes:
        nats: (N + 1,) losses that this rank has computed so far, 0 elsewhere; the last entry
            belongs to no target.
    """

    def __init__(
        self,
        model: GPT,
        order: LayerOrder,
        tokens: NDArray[np.uint16],
        batch_tokens: int,
        progress: Callable[[int, int], None] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Take the same arguments as `window_losses`."""
        self._model, self._order, self._progress = model, order, progress
        self._ranks = ranks or Ranks()
        self._seq_len = model.config.seq_len
        self._batch = max(1, batch_tokens // self._seq_len)
        self._num_targets = num_targets = len(tokens) - 1
        device = model.embedding.device
        self._stream = torch.zeros(
            num_targets + 1 + self._seq_len, dtype=torch.int32, device=device
        )
        self._stream[: num_targets + 1] = torch.from_numpy(tokens.astype(np.int32))
        wide = torch.promote_types(model.dtype, torch.float32)
        # One slot more than there are targets: padded positions write to it.
        self.nats = torch.zeros(num_targets + 1, dtype=wide, device=device)
        self._times_scored = torch.zeros(num_targets + 1, dtype=torch.int32, device=device)
        # All targets of a text that is shorter than a window are in the first one.
        length = self._seq_len if model.accelerated else max(1, min(self._seq_len, num_targets))
        self._offsets = torch.arange(length, device=device)
        self._done = 0
        self._recorded: dict[int, Recorded] = {}
        """By the number of scored targets; they follow changes of the weights."""

    def score(self, windows: Sequence[Windows]) -> None:
        """Score the targets of these windows with the model's current weights.

        With several ranks, each rank takes some of the batches.
        """
        for group in windows:
            self._score_group(group)

    @torch.no_grad()
    def _score_group(self, group: Windows) -> None:
        starts, scored = group
        model, num_targets, last = self._model, self._num_targets, len(self._stream) - 1
        rows = self._batch if model.accelerated else max(1, min(self._batch, len(starts)))
        firsts = range(0, len(starts), rows)
        padded = np.full(len(firsts) * rows, num_targets)  # padding: windows that score no target
        padded[: len(starts)] = starts
        # All at once: a copy from the CPU waits until the device has scored the batches before.
        begins = torch.from_numpy(padded).to(self._stream.device)[:, None]
        batches = self._ranks.mine(firsts)
        score = self._scoring(scored, rows, len(batches))
        for first in batches:
            positions = begins[first : first + rows] + self._offsets
            targets = positions[:, self._seq_len - scored :]
            next_tokens = self._stream[(targets + 1).clamp(max=last)]
            nats = score(self._stream[positions.clamp(max=last)], next_tokens)
            self._keep(targets.clamp(max=num_targets).flatten(), nats.flatten())
            self._tell(min(rows, len(starts) - first) * scored)

    def _keep(self, slots_M: Tensor, nats_M: Tensor) -> None:
        """Keep the losses of these targets."""
        self.nats[slots_M] = nats_M
        self._times_scored.index_add_(0, slots_M, torch.ones_like(slots_M).int())

    def _tell(self, done: int) -> None:
        """Tell that this rank has scored so many targets more, and others as many."""
        self._done += done * self._ranks.size
        if self._progress is not None:
            self._progress(min(self._done, self._num_targets), self._num_targets)

    def _scoring(self, scored: int, rows: int, batches: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what computes the losses of the last `scored` targets of a batch of windows.

        Args:
            scored: targets of each window.
            rows: windows of a batch.
            batches: how many batches come now; a few are not worth recording.
        """

        def score(tokens: Tensor, next_tokens: Tensor) -> Tensor:
            hidden = self._model(tokens, self._order, last=scored)
            return self._model.predicted_nats(hidden, tokens[:, -scored:], next_tokens)

        worth_it = self._model.accelerated and batches >= _MIN_RECORDED and self._stream.is_cuda
        if scored not in self._recorded and worth_it:
            examples = (
                torch.zeros(rows, size, dtype=torch.int32, device=self._stream.device)
                for size in (self._seq_len, scored)
            )
            self._recorded[scored] = Recorded(score, *examples)
        return self._recorded.get(scored, score)

    def losses(self) -> Tensor:
        """Return the losses of all ranks, (N,).

        Raises:
            RuntimeError: if a target was not scored exactly once.
        """
        # A target that another rank scored is 0 here.
        losses = self._ranks.sum_(self.nats[:-1])
        times_scored = self._ranks.sum_(self._times_scored[:-1])
        if not bool((times_scored == 1).all()):
            raise RuntimeError("the windows do not score every target exactly once")
        return losses
