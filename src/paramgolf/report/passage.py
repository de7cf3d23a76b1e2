"""A passage of the scored text, token by token: what the packed model predicted, and the text.

Every token is predicted in the same window as in the sliding-window score, so that the losses shown
here are those that the score consists of.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.data.prepared import PreparedText
from paramgolf.data.shards import document_starts
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.report.pieces import Pieces, visible_text
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.predictor import Predictor, load_on

MAX_TOKENS = 700
NUM_BEST = 5
SAMPLE_TOKENS = 150
_MAX_SEEDS = 4
_MIN_SAMPLE_CHARS = 200
LEVELS_BITS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Bits from which a token has the next stronger colour."""


@dataclass(frozen=True)
class Passage:
    """N consecutive targets of a stream with their predictions.

    The predictions are those of the fixed model, even if the recipe learns while it scores.
    """

    document: int
    """Index of the document that they belong to."""
    first: int
    """Index of the first target; target t is token t + 1 of the stream."""
    tokens: NDArray[np.uint16]
    """(N,) the targets."""
    nats: NDArray[np.float64]
    """(N,) their losses."""
    ranks: NDArray[np.int64]
    """(N,) rank of the target among all tokens by probability, from 1."""
    best: NDArray[np.int64]
    """(N, NUM_BEST) the most likely tokens, in descending order."""
    best_shares: NDArray[np.float64]
    """(N, NUM_BEST) their probabilities."""
    contexts: tuple[int, int]
    """Smallest and largest number of tokens that a target was predicted from."""


def typical_document(
    bytes_D: NDArray[np.int64],
    nats_D: NDArray[np.float64],
    tokens_D: NDArray[np.int64],
    min_tokens: int,
) -> int:
    """Return the index of the document whose bits per byte are closest to those of the whole text.

    Only documents of at least `min_tokens` tokens are considered, or the longest one if there are
    none; of equally close ones, the first is chosen.

    Args:
        bytes_D: bytes of every document.
        nats_D: its loss.
        tokens_D: its tokens, not counting BOS.
        min_tokens: tokens of a document that is long enough.
    """
    mean = nats_D.sum() / max(1, bytes_D.sum())
    apart = np.abs(nats_D / np.maximum(1, bytes_D) - mean)
    apart[tokens_D < min(min_tokens, tokens_D.max())] = np.inf
    return int(apart.argmin())


def document_bounds(stream: NDArray[np.uint16], bos: int) -> NDArray[np.int64]:
    """Return (D, 2): of every document the first token after BOS and the first past the end."""
    starts = document_starts(stream, bos)
    ends = np.append(starts[1:], len(stream))
    return np.stack([starts + (stream[starts] == bos), ends], axis=1)


def read_passage(
    predictor: Predictor, stream: NDArray[np.uint16], document: int, max_tokens: int
) -> Passage:
    """Predict the first tokens of a document, each in its window over the whole stream.

    Args:
        predictor: on its device, in plain PyTorch.
        stream: (T,) all tokens of the scored text.
        document: index of the document.
        max_tokens: maximum length of the passage.
    """
    begin, end = document_bounds(stream, predictor.tokenizer.bos)[document].tolist()
    begin = max(begin, 1)  # the stream's first token is not predicted
    first, last = begin - 1, min(end, begin + max_tokens) - 1
    parts = list(read_targets(predictor, stream, first, last))
    contexts = [length for part in parts for length in part.contexts]
    return Passage(
        document=document,
        first=first,
        tokens=stream[first + 1 : last + 1],
        nats=np.concatenate([part.nats for part in parts]),
        ranks=np.concatenate([part.ranks for part in parts]),
        best=np.concatenate([part.best for part in parts]),
        best_shares=np.concatenate([part.best_shares for part in parts]),
        contexts=(min(contexts), max(contexts)),
    )


class Predictions(NamedTuple):
    """What a model predicted of N consecutive targets; the columns of a `Passage`."""

    nats: NDArray[np.float64]
    ranks: NDArray[np.int64]
    best: NDArray[np.int64]
    best_shares: NDArray[np.float64]
    contexts: tuple[int, int]
    """Numbers of tokens that the first and the last target were predicted from."""


@torch.no_grad()
def read_targets(
    predictor: Predictor, stream: NDArray[np.uint16], first: int, last: int
) -> Iterator[Predictions]:
    """Yield the predictions of targets first .. last - 1 of a stream, window by window.

    The model is fixed; every target is predicted in its sliding window over the whole stream.
    """
    model = predictor.model
    device = model.embedding.device
    for start, low, high in _windows(predictor, len(stream) - 1, first, last):
        window = torch.from_numpy(stream[start:high].astype(np.int64)).to(device)
        hidden = model(window[None], predictor.order)[0, low - start :]
        targets = torch.from_numpy(stream[low + 1 : high + 1].astype(np.int64)).to(device)
        logits = model.predicted_logits(hidden, window[low - start :])
        yield predictions_of(logits, targets, (low + 1 - start, high - start))


def predictions_of(logits_NV: Tensor, targets_N: Tensor, contexts: tuple[int, int]) -> Predictions:
    """Return what logits say of their targets."""
    logs_NV = logits_NV.double().log_softmax(-1)
    of_targets = logs_NV.gather(1, targets_N[:, None])
    ranks = (logs_NV > of_targets).sum(-1) + 1
    logs, best = logs_NV.topk(NUM_BEST, dim=-1)
    columns = (-of_targets[:, 0], ranks, best, logs.exp())
    nats, ranks, best, shares = (column.cpu().numpy() for column in columns)
    return Predictions(nats, ranks, best, shares, contexts)


def _windows(
    predictor: Predictor, num_targets: int, first: int, last: int
) -> Iterator[tuple[int, int, int]]:
    """Yield the windows that score targets first .. last - 1: start, first and end of these."""
    seq_len = predictor.artifact.model.seq_len
    for starts, scored in predictor.windows(num_targets):
        for start in starts.tolist():
            low, high = max(first, start + seq_len - scored), min(last, start + seq_len)
            if low < high:
                yield start, low, high


def sample(predictor: Predictor) -> dict[str, Any]:
    """Generate a text without a prompt; return it with its seed.

    That is the first seed of a few whose text is long enough to judge; 0 if there is none.
    """
    seed, text = 0, ""
    for number in range(_MAX_SEEDS):
        generated = "".join(predictor.generate(max_tokens=SAMPLE_TOKENS, seed=number))
        if number == 0 or len(generated) >= _MIN_SAMPLE_CHARS:
            seed, text = number, generated
        if len(generated) >= _MIN_SAMPLE_CHARS:
            break
    return {
        "text": visible_text(text),
        "seed": seed,
        "max_tokens": SAMPLE_TOKENS,
        "min_chars": _MIN_SAMPLE_CHARS,
    }


def passage_section(run: RunDir, results: dict[str, Any], runtime: Runtime) -> dict[str, Any]:
    """Return the passage of a run, and a sample of generated text, for the page's template.

    Args:
        run: a finished run.
        results: contents of its `results.json`.
        runtime: where to predict, in plain PyTorch.
    """
    predictor = load_on(run.artifact, None, runtime)
    stream = PreparedText.of(run).stream("val", run.data)
    documents, _ = read_tensors(run.documents)
    bounds = document_bounds(stream, predictor.tokenizer.bos)
    document = typical_document(
        documents["bytes"].numpy(),
        documents["sliding"].double().numpy(),
        np.diff(bounds, axis=1)[:, 0],
        MAX_TOKENS,
    )
    passage = read_passage(predictor, stream, document, MAX_TOKENS)
    around = stream[passage.first : passage.first + len(passage.tokens) + 1]
    num_bytes = int(predictor.tokenizer.token_bytes(around).sum())
    bits = passage.nats / math.log(2)
    score = results["stages"]["sliding"]
    return {
        "document": document + 1,
        "num_documents": len(bounds),
        "whole_document": bool(len(passage.tokens) >= bounds[document][1] - passage.first - 1),
        "num_tokens": len(passage.tokens),
        "num_bytes": num_bytes,
        "bpb": float(bits.sum()) / num_bytes,
        "bits": float(bits.sum()),
        "first_share": float((passage.ranks == 1).mean()),
        "best_share": float((passage.best == passage.tokens[:, None]).any(1).mean()),
        "contexts": passage.contexts,
        "label": score["label"],
        "stage_bpb": score["bpb"],
        "device": runtime.device.type,
        "vocab_size": predictor.tokenizer.vocab_size,
        "case_ops": predictor.tokenizer.case_ops,
        "levels": LEVELS_BITS,
        "sample": sample(predictor),
        **_tokens(passage, bits, predictor.tokenizer),
    }


def _tokens(passage: Passage, bits: NDArray[np.float64], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the tokens as shown, and the data for their tooltips, with every piece only once."""
    pieces, tokens = Pieces(tokenizer.model), passage.tokens.tolist()
    texts = pieces.running(tokens, tokenizer.case_ops)
    used = np.unique(np.concatenate([passage.tokens, passage.best.ravel()]))
    number = {int(token): place for place, token in enumerate(used)}
    shown, rows = [], []
    for place, (token, (text, kind, mark)) in enumerate(zip(tokens, texts, strict=True)):
        level = bisect_right(LEVELS_BITS, bits[place])
        shown.append({"text": text, "mark": mark, "kind": kind, "level": level})
        best = [
            [number[int(other)], short_share(share)]
            for other, share in zip(passage.best[place], passage.best_shares[place], strict=True)
        ]
        share = short_share(math.exp(-passage.nats[place]))
        rows.append(
            [number[token], round(float(bits[place]), 4), share, int(passage.ranks[place]), best]
        )
    names = [pieces.alone(int(token)) for token in used]
    return {"tokens": shown, "data": {"pieces": names, "tokens": rows}}


def short_share(share: float) -> float:
    """Return a probability with four significant digits, for the data of a page."""
    return float(f"{share:.4g}")
