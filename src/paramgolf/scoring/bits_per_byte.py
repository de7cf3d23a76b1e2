"""Bits per byte (BPB): the one place where losses become a score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.data.provenance import Label
from paramgolf.data.shards import document_starts
from paramgolf.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """The score of one text, with its label."""

    loss_nats: float
    """Mean over the targets."""
    bpb: float
    """Total bits over the UTF-8 bytes of the decoded text."""
    tokens: int
    """Targets scored, boundary tokens included."""
    bytes: int
    label: str
    """"held-out", "score-first", "in-sample" or "unverified"; see `data.provenance`."""
    overlap_share: float | None
    """Share of the text's sampled shingles that occur in the texts that shaped the artifact."""
    original_bytes: int
    """UTF-8 bytes of the original text; differs from `bytes` if the tokenizer normalises."""

    @property
    def original_bpb(self) -> float:
        """Total bits over `original_bytes`."""
        return self.bpb * self.bytes / self.original_bytes if self.original_bytes else math.nan


def score_losses(
    losses_N: Tensor,
    tokens: NDArray[np.uint16],
    tokenizer: Tokenizer,
    label: Label,
    original_bytes: int | None = None,
) -> Score:
    """Return the score of a stream of N + 1 tokens from the losses of all targets, in float64."""
    total_nats = float(losses_N.double().sum())
    num_bytes = int(tokenizer.token_bytes(tokens).sum())
    num_targets = len(tokens) - 1
    bpb = total_nats / math.log(2) / num_bytes if num_bytes else math.nan
    return Score(
        total_nats / num_targets,
        bpb,
        num_targets,
        num_bytes,
        label.name,
        label.overlap_share,
        num_bytes if original_bytes is None else original_bytes,
    )


def document_nats(losses_N: Tensor, tokens: NDArray[np.uint16], bos: int) -> NDArray[np.float64]:
    """Return the total loss of each document of a stream of N + 1 tokens in nats, (D,).

    A BOS belongs to the document that it starts; the first one is not predicted.
    """
    of_tokens = np.concatenate([[0.0], losses_N.double().cpu().numpy()])
    return np.add.reduceat(of_tokens, document_starts(tokens, bos))
