"""The losses of a text, each target scored in the one window that its scheme gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.config import ScoreFirstConfig
from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder
from paramgolf.runtime.ranks import Ranks
from paramgolf.scoring.score_first import walk
from paramgolf.scoring.windows import Windows


def window_losses(
    model: GPT,
    order: LayerOrder,
    tokens: NDArray[np.uint16],
    windows: Sequence[Windows],
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
    learning: ScoreFirstConfig | None = None,
) -> Tensor:
    """Loss of every target in nats, each scored by exactly one window; (N,), float32 or wider.

    Args:
        model: the model, on its device.
        order: the layer order to score with.
        tokens: (N + 1,) the stream.
        windows: from `plain_windows` or `sliding_windows`.
        batch_tokens: tokens of one forward pass.
        progress: called with the number of targets scored and of all.
        ranks: share the batches out; all get all losses.
        learning: how an adaptive predictor learns between chunks; None: it is fixed.

    Raises:
        RuntimeError: if the windows do not score every target exactly once.
        UserError: see `score_first.walk`.
    """
    ranks = ranks or Ranks()
    scorer = WindowScorer(model, order, tokens, batch_tokens, progress, ranks)

    def visit(chunk: Sequence[Windows]) -> NDArray[np.uint16]:
        for some in chunk:
            scorer.score(some)
        return tokens

    learning = learning or ScoreFirstConfig()
    walk(model, order, learning, windows, len(tokens) - 1, visit, ranks)
    return scorer.losses()


class WindowScorer:
    """Scores windows of one stream in batches.

    Only scored positions pass through the output head. Windows that reach past the text are padded
    (the model is causal: nothing scored sees it), and so is the last batch, so that there is one
    shape to compile.

    Attributes:
        so_far: (N + 1,) losses in nats that this rank has computed; the last is of no target.
    """

    def __init__(
        self,
        model: GPT,
        order: LayerOrder,
        tokens: NDArray[np.uint16],
        batch_tokens: int,
        progress: Callable[[int, int], None] | None,
        ranks: Ranks,
    ) -> None:
        """Arguments as `window_losses`."""
        self._model, self._order, self._progress, self._ranks = model, order, progress, ranks
        self._seq_len = model.config.seq_len
        self._batch = max(1, batch_tokens // self._seq_len)
        self._num_targets = num_targets = len(tokens) - 1
        device = model.embedding.device
        self._stream = torch.zeros(
            num_targets + 1 + self._seq_len, dtype=torch.int32, device=device
        )
        self._stream[: num_targets + 1] = torch.from_numpy(tokens.astype(np.int32))
        wide = torch.promote_types(model.dtype, torch.float32)
        # One slot more than targets: padded positions write there.
        self.so_far = torch.zeros(num_targets + 1, dtype=wide, device=device)
        self._times_scored = torch.zeros(num_targets + 1, dtype=torch.int32, device=device)
        self._offsets = torch.arange(self._seq_len, device=device)
        self._done = 0

    @torch.no_grad()
    def score(self, windows: Windows) -> None:
        """Score what these windows score; of several ranks, each takes some."""
        starts, scored = windows
        model, num_targets, last = self._model, self._num_targets, len(self._stream) - 1
        rows = self._batch if model.compiled else max(1, min(self._batch, len(starts)))
        for first in self._ranks.mine(range(0, len(starts), rows)):
            chosen = starts[first : first + rows]
            padded = np.full(rows, num_targets)  # windows of padding score nothing
            padded[: len(chosen)] = chosen
            begin = torch.from_numpy(padded).to(self._stream.device)[:, None]
            positions = begin + self._offsets
            hidden = model(self._stream[positions.clamp(max=last)], self._order)
            targets = positions[:, self._seq_len - scored :]
            next_tokens = self._stream[(targets + 1).clamp(max=last)]
            nats = model.target_nats(hidden[:, self._seq_len - scored :], next_tokens)
            slots = targets.clamp(max=num_targets)
            self.so_far[slots] = nats
            ones = torch.ones_like(slots).flatten().int()
            self._times_scored.index_add_(0, slots.flatten(), ones)
            self._done += len(chosen) * scored * self._ranks.size
            if self._progress is not None:
                self._progress(min(self._done, num_targets), num_targets)

    def losses(self) -> Tensor:
        """(N,) of all ranks.

        Raises:
            RuntimeError: if a target was not scored exactly once.
        """
        # Where another rank scored, this one has 0.
        losses = self._ranks.sum_(self.so_far[:-1])
        times_scored = self._ranks.sum_(self._times_scored[:-1])
        if not bool((times_scored == 1).all()):
            raise RuntimeError("the windows do not score every target exactly once")
        return losses
