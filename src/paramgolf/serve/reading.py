"""What the model says of a text and how it goes on, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from paramgolf.errors import UserError
from paramgolf.report.passage import Predictions, predictions_of, read_targets
from paramgolf.scoring.generate import sample_predictions
from paramgolf.scoring.predictor import Predictor
from paramgolf.serve.requests import MAX_PROMPT_TOKENS, RequestError, Sampling


class Read(NamedTuple):
    """One token with its prediction by the fixed model, before temperature and top_p."""

    token: int
    given: bool
    """It is one of the prompt's; else the model has drawn it."""
    nats: float
    rank: int
    """By probability, from 1."""
    best: list[int]
    """The five most likely tokens, in descending order."""
    shares: list[float]
    """Their probabilities."""


def prompt_tokens(predictor: Predictor, prompt: str) -> NDArray[np.uint16]:
    """Return the tokens of a prompt, beginning with BOS.

    Raises:
        RequestError: if it is too long, or not valid Unicode.
    """
    try:
        tokens = predictor.tokenizer.encode([prompt])[0]
    except UserError as error:
        raise RequestError(str(error), "prompt") from error
    if len(tokens) - 1 > MAX_PROMPT_TOKENS:
        raise RequestError(
            f"the prompt has {len(tokens) - 1:,} tokens: expected at most {MAX_PROMPT_TOKENS:,}",
            "prompt",
        )
    return tokens


def read_and_continue(
    predictor: Predictor, tokens: NDArray[np.uint16], sampling: Sampling, read_prompt: bool
) -> Iterator[Read]:
    """Yield the tokens of a text, if asked for, and those that continue it.

    The text is read in the sliding windows of its score. Its continuation is that of `paramgolf
    generate`; if the document ends, BOS is the last token.

    Args:
        predictor: the model; only one thread may use it at a time.
        tokens: of the text, beginning with BOS, which is not yielded.
        sampling: how to continue.
        read_prompt: whether to yield the tokens of the text.
    """
    if read_prompt:
        begin = 1
        for part in read_targets(predictor, tokens, 0, len(tokens) - 1):
            end = begin + len(part.nats)
            yield from _reads(tokens[begin:end].tolist(), True, part)
            begin = end
    generator = torch.Generator().manual_seed(sampling.seed)
    drawn = sample_predictions(
        predictor.model,
        predictor.order,
        tokens.tolist(),
        sampling.temperature,
        sampling.top_p,
        generator,
    )
    for token, logits_V in islice(drawn, sampling.max_tokens):
        part = predictions_of(logits_V[None], torch.tensor([token]), (1, 1))
        yield from _reads([token], False, part)
        if token == predictor.tokenizer.bos:
            return


def _reads(tokens: list[int], given: bool, part: Predictions) -> Iterator[Read]:
    columns = (part.nats, part.ranks, part.best, part.best_shares)
    rows = zip(tokens, *(column.tolist() for column in columns), strict=True)
    for token, nats, rank, best, shares in rows:
        yield Read(token, given, nats, rank, best, shares)
