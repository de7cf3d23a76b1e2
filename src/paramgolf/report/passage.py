"""A passage of the scored text, token by token: what the packed model expected, and what came.

Every token is predicted from the window that the score of sliding windows gives it, so that the
losses here are those that the score is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from paramgolf.data.shards import document_starts
from paramgolf.scoring.predictor import Predictor

NUM_BEST = 5


@dataclass(frozen=True)
class Passage:
    """Some neighbouring targets of a stream, N in all.

    A distribution is that of the fixed predictor, whatever the recipe learns while it scores.
    """

    document: int
    """Number of the document that it is from, from 0."""
    first: int
    """Number of the first target; target t is token t + 1 of the stream."""
    tokens: NDArray[np.uint16]
    """(N,) the targets."""
    nats: NDArray[np.float64]
    """(N,) their losses."""
    ranks: NDArray[np.int64]
    """(N,) how many tokens the model held likelier than the target, plus 1."""
    best: NDArray[np.int64]
    """(N, NUM_BEST) the likeliest tokens, most likely first."""
    best_shares: NDArray[np.float64]
    """(N, NUM_BEST) their probabilities."""
    contexts: tuple[int, int]
    """The fewest and the most tokens that one was predicted from."""


def typical_document(
    bytes_D: NDArray[np.int64],
    nats_D: NDArray[np.float64],
    tokens_D: NDArray[np.int64],
    min_tokens: int,
) -> int:
    """Number of the document whose bits per byte are nearest to those of the whole text.

    Only documents of at least so many tokens are looked at, or the longest where none is so long;
    of equally near ones, the first.

    Args:
        bytes_D: of every document.
        nats_D: their losses.
        tokens_D: their tokens, BOS not counted.
        min_tokens: what is long enough.
    """
    mean = nats_D.sum() / max(1, bytes_D.sum())
    apart = np.abs(nats_D / np.maximum(1, bytes_D) - mean)
    apart[tokens_D < min(min_tokens, tokens_D.max())] = np.inf
    return int(apart.argmin())


def document_bounds(stream: NDArray[np.uint16], bos: int) -> NDArray[np.int64]:
    """(D, 2) first token behind the BOS and first token past the end of every document."""
    starts = document_starts(stream, bos)
    ends = np.append(starts[1:], len(stream))
    return np.stack([starts + (stream[starts] == bos), ends], axis=1)


def read_passage(
    predictor: Predictor, stream: NDArray[np.uint16], document: int, max_tokens: int
) -> Passage:
    """Predict the first tokens of a document, each in its window of the whole stream.

    Args:
        predictor: on its device, not compiled.
        stream: (N + 1,) all of the scored text.
        document: its number.
        max_tokens: where the passage ends, at the latest.
    """
    begin, end = document_bounds(stream, predictor.tokenizer.bos)[document].tolist()
    begin = max(begin, 1)  # the stream's first token is not predicted
    first, last = begin - 1, min(end, begin + max_tokens) - 1
    parts: list[tuple[NDArray[np.float64], ...]] = []
    contexts: list[int] = []
    for start, low, high in _windows(predictor, len(stream) - 1, first, last):
        parts.append(_predict(predictor, stream, start, low, high))
        contexts += [low + 1 - start, high - start]
    nats, ranks, best, shares = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Passage(
        document=document,
        first=first,
        tokens=stream[first + 1 : last + 1],
        nats=nats,
        ranks=ranks.astype(np.int64),
        best=best.astype(np.int64),
        best_shares=shares,
        contexts=(min(contexts), max(contexts)),
    )


def _windows(
    predictor: Predictor, num_targets: int, first: int, last: int
) -> Iterator[tuple[int, int, int]]:
    """The windows that score targets first .. last - 1: their start and which of these."""
    seq_len = predictor.artifact.model.seq_len
    for starts, scored in predictor.windows(num_targets):
        for start in starts.tolist():
            low, high = max(first, start + seq_len - scored), min(last, start + seq_len)
            if low < high:
                yield start, low, high


@torch.no_grad()
def _predict(
    predictor: Predictor, stream: NDArray[np.uint16], start: int, low: int, high: int
) -> tuple[NDArray[np.float64], ...]:
    """Of targets low .. high - 1: nats, ranks, likeliest tokens, their probabilities."""
    model = predictor.model
    device = model.embedding.device
    window = torch.from_numpy(stream[start:high].astype(np.int64)).to(device)
    hidden = model(window[None], predictor.order)[0, low - start :]
    logs_NV = model.logits(hidden).double().log_softmax(-1)
    targets = torch.from_numpy(stream[low + 1 : high + 1].astype(np.int64)).to(device)
    of_targets = logs_NV.gather(1, targets[:, None])
    ranks = (logs_NV > of_targets).sum(-1) + 1
    logs, best = logs_NV.topk(NUM_BEST, dim=-1)
    columns = (-of_targets[:, 0], ranks, best, logs.exp())
    return tuple(column.double().cpu().numpy() for column in columns)
