"""Bits per byte of a text under a model: the one place where losses become a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.data.provenance import Label
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.distributed import Ranks
from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder
from paramgolf.scoring.windows import Windows


@dataclass(frozen=True)
class Score:
    """What scoring a text gave; the label belongs to the number."""

    loss_nats: float
    """Mean over the targets."""
    bpb: float
    """Total bits over the UTF-8 bytes of the decoded text."""
    tokens: int
    """Targets scored, boundary tokens included."""
    bytes: int
    label: str
    """"held-out", "in-sample" or "unverified"; see `data.provenance`."""
    overlap_share: float | None
    """Share of the text's sampled shingles that shaped the artifact."""


def score_losses(
    losses_N: Tensor, tokens: NDArray[np.uint16], tokenizer: Tokenizer, label: Label
) -> Score:
    """Turn the losses of all targets of a stream of N + 1 tokens into a score, in float64."""
    total_nats = float(losses_N.double().sum())
    num_bytes = int(tokenizer.token_bytes(tokens).sum())
    num_targets = len(tokens) - 1
    bpb = total_nats / math.log(2) / num_bytes if num_bytes else math.nan
    return Score(
        total_nats / num_targets, bpb, num_targets, num_bytes, label.name, label.overlap_share
    )


@torch.no_grad()
def window_losses(
    model: GPT,
    order: LayerOrder,
    tokens: NDArray[np.uint16],
    windows: Sequence[Windows],
    batch_tokens: int,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Loss of every target in nats, each scored by exactly one window; (N,), float32 or wider.

    All windows of a batch run together, and only scored positions pass through the output head.
    Windows that reach past the text are padded (the model is causal: nothing scored sees it), and
    so is the last batch, so that there is one shape to compile.

    Args:
        model: the model, on its device.
        order: the layer order to score with.
        tokens: (N + 1,) the stream.
        windows: from `plain_windows` or `sliding_windows`.
        batch_tokens: tokens of one forward pass.
        progress: called with the number of targets scored and of all.
        ranks: share the batches out; all get all losses.

    Raises:
        RuntimeError: if the windows do not score every target exactly once.
    """
    ranks = ranks or Ranks()
    seq_len = model.config.seq_len
    batch = max(1, batch_tokens // seq_len)
    device = model.embedding.device
    num_targets = len(tokens) - 1
    stream = torch.zeros(num_targets + 1 + seq_len, dtype=torch.int32, device=device)
    stream[: num_targets + 1] = torch.from_numpy(tokens.astype(np.int32))
    wide = torch.promote_types(model.dtype, torch.float32)
    # One slot more than targets: padded positions write there.
    losses = torch.zeros(num_targets + 1, dtype=wide, device=device)
    times_scored = torch.zeros(num_targets + 1, dtype=torch.int32, device=device)
    offsets = torch.arange(seq_len, device=device)
    done = 0
    for starts, scored in windows:
        rows = batch if model.compiled else max(1, min(batch, len(starts)))
        for first in ranks.mine(range(0, len(starts), rows)):
            chosen = starts[first : first + rows]
            padded = np.full(rows, num_targets)  # windows of padding score nothing
            padded[: len(chosen)] = chosen
            begin = torch.from_numpy(padded).to(device)[:, None]
            positions = begin + offsets
            hidden = model(stream[positions.clamp(max=len(stream) - 1)], order)
            targets = positions[:, seq_len - scored :]
            next_tokens = stream[(targets + 1).clamp(max=len(stream) - 1)]
            nats = model.target_nats(hidden[:, seq_len - scored :], next_tokens)
            slots = targets.clamp(max=num_targets)
            losses[slots] = nats
            times_scored.index_add_(0, slots.flatten(), torch.ones_like(slots).flatten().int())
            done += len(chosen) * scored * ranks.size
            if progress is not None:
                progress(min(done, num_targets), num_targets)
    # Where another rank scored, this one has 0.
    losses, times_scored = ranks.sum_(losses[:-1]), ranks.sum_(times_scored[:-1])
    if not bool((times_scored == 1).all()):
        raise RuntimeError("the windows do not score every target exactly once")
    return losses
