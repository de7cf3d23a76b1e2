"""The overlap of a run's scored text, measured again on the texts themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paramgolf.config import RunConfig
from paramgolf.data.fingerprints import RUN_LETTERS
from paramgolf.data.overlap import FEW_DOCUMENTS, MAX_BYTES, MAX_DOCUMENTS, Overlap
from paramgolf.data.prepared import PreparedText
from paramgolf.data.processes import AllCores
from paramgolf.data.provenance import Label, Provenance
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.modes import score_modes
from paramgolf.verify.checks import Check, check, not_verified
from paramgolf.verify.rebuilt import PROVENANCE, rebuilt


def overlap_checks(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Iterator[Check]:
    """Compare the scored text with the texts of the run, and every label with the outcome.

    The same pass over these texts rebuilds their fingerprints. Where a shard is gone, only the
    stored fingerprints are left, which the run wrote itself.
    """
    text, tokenizer = PreparedText.of(run), Tokenizer.load(run.tokenizer)
    if gone := missing_shards(text, run.data):
        overlaps = {name: Overlap(**values) for name, values in results["overlap"].items()}
        stored = Provenance.load(run.provenance)
        label = stored.label(text.scored_text(run.data, tokenizer).texts)
        for found in _checks(config, results, overlaps, label):
            yield not_verified(found, gone[0])
        as_stored = check(PROVENANCE, "provenance", True, f"{len(stored.texts)} texts as stored")
        yield not_verified(as_stored, gone[0])
        return
    stored = Provenance.load(run.provenance)
    found = AllCores(text, run.data, tokenizer, {}, lambda done, total: None)
    label = Label.of_run(found.overlaps, config.adapt.splits)
    yield from _checks(config, results, found.overlaps, label)
    yield rebuilt(run, stored, found, config.adapt.splits, results["tokenizer"]["claim"])


def missing_shards(text: PreparedText, folder: Path) -> list[Path]:
    """Return the shards of a run's text that are gone, given its data folder."""
    paths = [path for split in text.splits for path in text.shards(split, folder)]
    return [path for path in paths if not path.exists()]


def _checks(
    config: RunConfig, results: dict[str, Any], overlaps: dict[str, Overlap], label: Label
) -> Iterator[Check]:
    """Judge the label of the run's own scores, and compare all labels with the overlaps."""
    found = label.overlap
    figure = (
        f"{found.seen_documents:,} of {found.documents:,} documents seen (limit: "
        f"{MAX_DOCUMENTS:.0%}, or {FEW_DOCUMENTS} if that is more), {found.seen_bytes:,} of "
        f"{found.bytes:,} bytes (limit {MAX_BYTES:.0%}); runs of {RUN_LETTERS} letters in common: "
        f"{found.share or 0.0:.2%}"
    )
    yield check("scored text is held out", "provenance", label.name == "held-out", figure)
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
    yield check("labels match the overlap", "provenance", not wrong, figure)


def _agrees(score: dict[str, Any], label: Label) -> bool:
    """Return whether a score has this label and overlap."""
    found = label.overlap
    right = (label.name, found.share, found.seen_documents, found.documents, found.seen_bytes)
    keys = ("label", "overlap_share", "seen_documents", "documents", "seen_bytes")
    return tuple(score.get(key) for key in keys) == right
