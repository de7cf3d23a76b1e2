"""Score the packed file: nothing but model.bin, the tokenizer and the text is read."""

from __future__ import annotations

import dataclasses
import lzma
import threading
from typing import Any

import torch
from torch import Tensor

from paramgolf.runtime.files import write_tensors
from paramgolf.scoring.bits_per_byte import Score, document_nats
from paramgolf.scoring.modes import score_modes
from paramgolf.scoring.predictor import load_on
from paramgolf.stages.job import Job

_XZ_PRESET = 9


def run(job: Job) -> dict[str, Any]:
    """Score the artifact on the validation text in every mode; return the stage result."""
    config, ledger = job.config, job.ledger
    with ledger.phase("score: load artifact"):
        predictor = load_on(job.run.artifact, job.run.tokenizer, job.runtime)
        text = job.text.scored_text(job.run.data, predictor.tokenizer)
        content = "".join(text.texts).encode()
    label = job.label(job.adapted_on)
    scores: dict[str, Score] = {}
    losses: dict[str, Tensor] = {}
    xz = _XzCompression(content)
    if job.runtime.ranks.main:
        xz.start()
    for mode in score_modes(config.score.stride, config.score_first.learns):
        name = mode.stage
        progress = job.reporter.progress(name, unit="targets")
        with ledger.phase(f"score: {name}"):
            losses[name] = predictor.losses(
                text.tokens, mode.stride, config.score.batch_tokens, progress.update, mode.fixed
            )
            scores[name] = predictor.score_of(losses[name], text, mode.fixed, label)
    if not job.runtime.ranks.main:
        return {}
    with ledger.phase("score: write documents"):
        sizes = torch.tensor([len(document.encode()) for document in text.texts])
        bos = predictor.tokenizer.bos
        nats = {
            name: torch.from_numpy(document_nats(own, text.tokens, bos))
            for name, own in losses.items()
        }
        write_tensors(job.run.documents, {"bytes": sizes, **nats}, text_sha256=text.sha256)
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


class _XzCompression(threading.Thread):
    """Compresses the same text with `xz -9`, for comparison, on another core."""

    def __init__(self, content: bytes) -> None:
        super().__init__(daemon=True)  # an error elsewhere does not wait for it
        self._content, self.size = content, 0

    def run(self) -> None:
        self.size = len(lzma.compress(self._content, preset=_XZ_PRESET))
