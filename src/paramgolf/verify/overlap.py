"""The overlap of a run's scored text, measured again on the texts themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from paramgolf.config import RunConfig
from paramgolf.data.fingerprints import RUN_LETTERS
from paramgolf.data.overlap import (
    FEW_DOCUMENTS,
    MAX_BYTES,
    MAX_DOCUMENTS,
    Overlap,
    measured_overlap,
)
from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import Label, Provenance
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.modes import score_modes
from paramgolf.verify.checks import Check, check


def overlap_checks(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Iterator[Check]:
    """Compare the scored text with the texts of the run, and every label with the outcome.

    Where a shard is gone, only the fingerprints are left, which the run wrote itself.
    """
    text, tokenizer, kind = PreparedText.of(run), Tokenizer.load(run.tokenizer), "recomputed"
    missing = [p for name in text.splits for p in text.shards(name, run.data) if not p.exists()]
    if missing:
        kind = "self-reported"
        overlaps = {name: Overlap(**values) for name, values in results["overlap"].items()}
        known = Provenance.load(run.provenance)
        label = known.label(text.scored_text(run.data, tokenizer).texts)
    else:
        overlaps = measured_overlap(text, run.data, tokenizer)
        label = Label.of_run(overlaps, config.adapt.splits)
    found = label.overlap
    figure = (
        f"{found.seen_documents:,} of {found.documents:,} documents seen (limit: "
        f"{MAX_DOCUMENTS:.0%}, or {FEW_DOCUMENTS} if that is more), {found.seen_bytes:,} of "
        f"{found.bytes:,} bytes (limit {MAX_BYTES:.0%}); runs of {RUN_LETTERS} letters in common: "
        f"{found.share or 0.0:.2%}"
    )
    figure += f"; by stored fingerprints, as {missing[0]} is gone" if missing else ""
    yield check("scored text is held out", "provenance", label.name == "held-out", figure, kind)
    own = Label.of_run(overlaps, config.adapt.splits)
    expected = {"ema": Label.of_run(overlaps, []), "adapted": own}
    for mode in score_modes(config.score.stride, config.score_first.learns):
        expected[mode.stage] = own if mode.fixed else own.adaptive()
    wrong = [
        stage
        for stage, score in results["stages"].items()
        if stage not in expected or not _agrees(score, expected[stage])
    ]
    if results["overlap"] != {name: own._asdict() for name, own in overlaps.items()}:
        wrong.append("overlap")
    figure = f"wrong: {', '.join(wrong)}" if wrong else f"all correct: the text is {own.name}"
    yield check("labels match the overlap", "provenance", not wrong, figure, kind)


def _agrees(score: dict[str, Any], label: Label) -> bool:
    """Return whether a score has this label and overlap."""
    found = label.overlap
    right = (label.name, found.share, found.seen_documents, found.documents, found.seen_bytes)
    keys = ("label", "overlap_share", "seen_documents", "documents", "seen_bytes")
    return tuple(score.get(key) for key in keys) == right
