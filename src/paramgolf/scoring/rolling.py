"""The windows of lm-evaluation-harness, to compare scores with it.

Its `loglikelihood_rolling` scores every document by itself: BOS is context, not a target, and
consecutive windows of `seq_len` targets follow. The last one is moved back to end with the
document, so that it is whole, and scores only the targets that are left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from paramgolf.data.shards import document_starts
from paramgolf.data.streams import Stream
from paramgolf.scoring.predictor import Predictor


def rolling_losses(
    predictor: Predictor, stream: Stream, progress: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Return the loss of every token of every document but BOS in nats.

    The model does not learn.

    Args:
        predictor: the packed model.
        stream: a text.
        progress: called with the number of targets scored.

    Returns:
        (N,) for a text of N tokens, its BOS tokens left out.
    """
    length = predictor.artifact.model.seq_len
    starts = document_starts(stream.tokens, predictor.tokenizer.bos)
    losses: list[Tensor] = []
    done = 0
    for tokens in np.split(stream.tokens, starts[1:]):
        targets = len(tokens) - 1
        left = targets % length if targets > length else 0
        if targets > left:
            losses.append(predictor.losses(tokens[: targets - left + 1], stride=0, fixed=True))
        if left:
            last = predictor.losses(tokens[-length - 1 :], stride=0, fixed=True)
            losses.append(last[-left:])
        done += targets
        progress(done)
    return torch.cat(losses)
