"""Scoring from the packed file and the tokenizer alone, in plain and in sliding windows."""

from __future__ import annotations

import dataclasses
import hashlib
import lzma
import threading
from typing import Any

import torch
from torch import Tensor

from paramgolf.runtime.files import write_tensors
from paramgolf.scoring.bits_per_byte import Score, document_nats
from paramgolf.scoring.predictor import load_on
from paramgolf.stages.job import Job

_XZ_PRESET = 9


def run(job: Job) -> dict[str, Any]:
    """Score the artifact on the validation text; returns the stage's record."""
    ledger, stride = job.ledger, job.config.score.stride
    with ledger.phase("score: load artifact"):
        predictor = load_on(job.run.artifact, job.run.tokenizer, job.runtime)
        stream = job.text.stream("val", job.run.data)
        texts = predictor.tokenizer.decode_documents(stream)
        content = "".join(texts).encode()
    scores: dict[str, Score] = {}
    losses: dict[str, Tensor] = {}
    xz = _Compression(content)
    if job.runtime.ranks.main:
        xz.start()
    ways = {"quantized": (0, True), "sliding": (stride, True)}
    if job.config.score_first.learns:
        ways["score_first"] = stride, False
    for name, (window_stride, fixed) in ways.items():
        progress = job.reporter.progress(name, unit="targets")
        with ledger.phase(f"score: {name}"):
            losses[name] = predictor.losses(
                stream, window_stride, job.config.score.batch_tokens, progress.update, fixed
            )
            scores[name] = predictor.score_of(
                losses[name], stream, texts, fixed, job.text.splits["val"].original_bytes
            )
    if not job.runtime.ranks.main:
        return {}
    with ledger.phase("score: write documents"):
        sizes = torch.tensor([len(text.encode()) for text in texts])
        bos = predictor.tokenizer.bos
        nats = {
            name: torch.from_numpy(document_nats(own, stream, bos)) for name, own in losses.items()
        }
        write_tensors(
            job.run.documents,
            {"bytes": sizes, **nats},
            text_sha256=hashlib.sha256(content).hexdigest(),
        )
    with ledger.phase("score: xz -9, for scale"):
        xz.join()
    seconds = ledger.seconds()
    return {
        "scores": {name: dataclasses.asdict(score) for name, score in scores.items()},
        "tokens_per_second": {
            f"score_{name}": score.tokens / seconds[f"score: {name}"]
            for name, score in scores.items()
        },
        "xz": {"bytes": xz.size, "bpb": 8 * xz.size / len(content)},
    }


class _Compression(threading.Thread):
    """For scale, on another core: what a general compressor makes of the same text."""

    def __init__(self, content: bytes) -> None:
        super().__init__(daemon=True)  # an error elsewhere does not wait for it
        self._content, self.size = content, 0

    def run(self) -> None:
        self.size = len(lzma.compress(self._content, preset=_XZ_PRESET))
