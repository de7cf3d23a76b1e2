"""Scores of finished runs, and whether they may be compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.errors import UserError
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.bits_per_byte import label_of
from paramgolf.study.runs import SeedRun, different_forms
from paramgolf.verify.checks import other_sums

Array = NDArray[np.float64]


class RunScore(NamedTuple):
    """One run's score at one stage."""

    path: Path
    seed: int
    bpb: float
    loss_nats: float
    """Nats per token."""
    tokens: int
    bytes: int
    label: str
    text_sha256: str
    restores: str
    """In which form the text comes back from its tokens: "original", or what a tokenizer makes of
    it, which has less to predict."""
    bytes_D: Array
    """Bytes of every document."""
    nats_D: Array | None
    """Loss of every document; None for a stage that is not scored from the packed file."""


def read_score(run: SeedRun, stage: str) -> RunScore:
    """Read a finished run's score at a stage, with its losses by document.

    Raises:
        UserError: if the run has no such stage, or its documents.safetensors is missing or belongs
            to another score.
    """
    assert run.results is not None
    stages = run.results["stages"]
    if stage not in stages:
        raise UserError(f"{run.path} has no score {stage!r}; it has {', '.join(stages)}")
    path = RunDir(run.path).documents
    if not path.exists():
        raise UserError(
            f"{run.path} has no {path.name}, so the text of its scores is unknown: remove its "
            f"stages/score.json, then `paramgolf run --resume {run.path}`"
        )
    tensors, notes = read_tensors(path)
    if notes.get("text_sha256") != run.text_sha256:
        raise UserError(f"{path} is not about the text that results.json names by its SHA-256")
    score = stages[stage]
    nats_D = tensors[stage].numpy().astype(np.float64) if stage in tensors else None
    if nats_D is not None:
        total = score["loss_nats"] * score["tokens"]
        if other_sums(score, float(nats_D.sum())):
            raise UserError(
                f"{path} sums to {nats_D.sum():.3f} nats but results.json to {total:.3f}: they "
                "belong to different scores; remove stages/score.json, then "
                f"`paramgolf run --resume {run.path}`"
            )
    return RunScore(
        run.path,
        run.seed,
        **{key: score[key] for key in ("bpb", "loss_nats", "tokens", "bytes")},
        label=label_of(run.results, stage),
        text_sha256=run.text_sha256,
        restores=run.restores,
        bytes_D=tensors["bytes"].numpy().astype(np.float64),
        nats_D=nats_D,
    )


def require_same(scores: Sequence[RunScore], fields: Sequence[str]) -> None:
    """Refuse scores that differ in one of these fields.

    Raises:
        UserError: naming the first field that differs, with both values.
    """
    first = scores[0]
    for field in fields:
        for other in scores[1:]:
            ours, theirs = getattr(first, field), getattr(other, field)
            if ours != theirs:
                if field == "restores":
                    raise UserError(different_forms(ours, first.path, theirs, other.path))
                if field == "text_sha256":
                    ours, theirs = ours[:16], theirs[:16]
                raise UserError(
                    f"these scores are not comparable: {field} is {ours} in {first.path} and "
                    f"{theirs} in {other.path}"
                )


def require_same_documents(scores: Sequence[RunScore]) -> None:
    """Refuse scores whose text is split into documents differently.

    Raises:
        UserError: naming the first two runs that differ.
    """
    first = scores[0]
    for other in scores[1:]:
        if not np.array_equal(first.bytes_D, other.bytes_D):
            raise UserError(
                f"these scores are not comparable: {first.path} has {len(first.bytes_D):,} "
                f"documents, {other.path} {len(other.bytes_D):,}, split at different places"
            )
