"""The provenance of a run, built again from its text and compared with the stored file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paramgolf.data.provenance import Provenance, Text
from paramgolf.data.run_texts import RunTexts
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify.checks import Check, check

PROVENANCE = "provenance rebuilt"
"""Name of the check."""


def rebuilt(
    run: RunDir, stored: Provenance, found: RunTexts, adapted_on: Sequence[str], claim: str
) -> Check:
    """Compare the provenance that follows from the texts with the stored file, byte for byte.

    Args:
        run: the run.
        stored: what its file contains.
        found: what was read of its texts.
        adapted_on: the splits that the weights were adapted on.
        claim: where the tokenizer comes from; see `data.claims`.
    """
    expected = found.provenance(claim).of("train", *adapted_on)
    uses = {**expected.uses, "adaptation": ", ".join(adapted_on) or "none"}
    expected = replace(expected, uses=uses)
    good = expected.content() == run.provenance.read_bytes()
    runs = sum(len(text.runs) for text in expected.texts.values())
    figure = f"{runs:,} fingerprints of {len(expected.texts)} texts, byte for byte"
    if not good:
        figure = f"different: {', '.join(_different(stored, expected))}"
    return check(PROVENANCE, "provenance", good, figure)


def _different(stored: Provenance, expected: Provenance) -> list[str]:
    """Return where the stored file differs."""
    if stored.sampling.salt != expected.sampling.salt:
        return ["the sample, whose salt does not follow from the shards"]
    if stored.sampling != expected.sampling:
        return ["the share of the fingerprints that is kept"]
    wrong = ["uses"] * (stored.uses != expected.uses)
    for name in sorted({*stored.texts, *expected.texts}):
        if not _equal(stored.texts.get(name), expected.texts.get(name)):
            wrong.append(f"fingerprints of {name}")
    return wrong


def _equal(one: Text | None, other: Text | None) -> bool:
    if one is None or other is None:
        return False
    same = (one.documents, one.sha256, one.shards) == (other.documents, other.sha256, other.shards)
    return same and one.runs.tolist() == other.runs.tolist()
