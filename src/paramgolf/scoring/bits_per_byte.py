"""Bits per byte (BPB): the one place where losses become a score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.data.claims import shown_form
from paramgolf.data.provenance import Label
from paramgolf.data.shards import document_starts


@dataclass(frozen=True)
class Score:
    """The score of one text, with its label."""

    loss_nats: float
    """Mean over the targets."""
    bpb: float
    """Total bits over `bytes`."""
    tokens: int
    """Targets scored, boundary tokens included."""
    bytes: int
    """UTF-8 bytes of the original documents."""
    bytes_are: str
    """"original"; or "as decoded" if the originals are not known."""
    label: str
    """"held-out", "score-first", "in-sample" or "unverified"; see `data.provenance`."""
    overlap_share: float | None
    """Share of the text's runs of letters that occur in the texts that shaped the artifact; None:
    nothing was compared."""
    seen_documents: int
    """Documents that are seen in those texts."""
    documents: int
    """Documents that were compared."""
    seen_bytes: int
    """UTF-8 bytes of the seen documents."""

    @property
    def shown_label(self) -> str:
        """The label as people read it."""
        return shown_label(self.label, self.bytes_are)


def shown_label(label: str, bytes_are: str) -> str:
    """Return a label as people read it: it says so if the bytes are not the original's."""
    return label if bytes_are == "original" else f"{label}, bytes {bytes_are}"


def label_of(results: dict[str, Any], stage: str) -> str:
    """Return the label of a score in results.json as people read it, with the text's form."""
    score = results["stages"][stage]
    return shown_label(score["label"], score["bytes_are"]) + shown_form(results["tokenizer"])


def score_losses(losses_N: Tensor, num_bytes: int, bytes_are: str, label: Label) -> Score:
    """Return the score of a text from the losses of all its targets, summed in float64."""
    total_nats = float(losses_N.double().sum())
    num_targets, overlap = len(losses_N), label.overlap
    return Score(
        total_nats / num_targets,
        total_nats / math.log(2) / num_bytes if num_bytes else math.nan,
        num_targets,
        num_bytes,
        bytes_are,
        label.name,
        overlap.share,
        overlap.seen_documents,
        overlap.documents,
        overlap.seen_bytes,
    )


def document_nats(losses_N: Tensor, tokens: NDArray[np.uint16], bos: int) -> NDArray[np.float64]:
    """Return the total loss of each document of a stream of N + 1 tokens in nats, (D,).

    A BOS belongs to the document that it starts; the first one is not predicted.
    """
    of_tokens = np.concatenate([[0.0], losses_N.double().cpu().numpy()])
    return np.add.reduceat(of_tokens, document_starts(tokens, bos))
