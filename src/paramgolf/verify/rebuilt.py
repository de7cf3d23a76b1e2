"""The provenance of a run, built again from its text and compared with the stored file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import Provenance, RunTexts, Text
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify.checks import Check, check

PROVENANCE = "provenance rebuilt"
"""Name of the check."""


class Rebuilding:
    """Gathers the fingerprints of all texts of a run while another check reads them."""

    def __init__(self, run: RunDir, text: PreparedText, tokenizer: Tokenizer) -> None:
        """Prepare for the texts of `run`, whose shards must all exist.

        Raises:
            UserError: if the stored provenance is damaged.
        """
        self._run, self._text, self._tokenizer = run, text, tokenizer
        self._stored = Provenance.load(run.provenance)
        self._texts = RunTexts(text, run.data)
        self.add = self._texts.add

    def check(self, adapted_on: Sequence[str], claim: str) -> Check:
        """Compare what was gathered with the stored file, byte for byte.

        Args:
            adapted_on: the splits that the weights were adapted on.
            claim: where the tokenizer comes from; see `data.claims`.
        """
        tokens = self._text.stream("val", self._run.data)
        self.add("val", self._tokenizer.decode_documents(tokens))
        expected = self._texts.provenance(self._tokenizer, claim).of("train", *adapted_on)
        uses = {**expected.uses, "adaptation": ", ".join(adapted_on) or "none"}
        expected = replace(expected, uses=uses)
        good = expected.content() == self._run.provenance.read_bytes()
        runs = sum(len(text.runs) for text in expected.texts.values())
        figure = f"{runs:,} fingerprints of {len(expected.texts)} texts, byte for byte"
        if not good:
            figure = f"different: {', '.join(self._different(expected))}"
        return check(PROVENANCE, "provenance", good, figure)

    def _different(self, expected: Provenance) -> list[str]:
        """Return where the stored file differs."""
        stored = self._stored
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
