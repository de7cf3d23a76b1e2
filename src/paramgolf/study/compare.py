"""Is A better than B by a margin? Scores of two groups of runs, two tests, and a verdict.

The margin is given in nats per token, as in the challenge (0.005). If both groups have the same
tokens, it corresponds to one difference in BPB. If their tokenizers differ, nats per token are not
comparable, and the margin is converted with B's tokens: B's loss is the one to beat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.data.claims import is_self_reported
from paramgolf.errors import ConfigError, UserError
from paramgolf.study.runs import SeedRun
from paramgolf.study.scores import (
    Array,
    RunScore,
    read_score,
    require_same,
    require_same_documents,
)
from paramgolf.study.seeds import read_seeds
from paramgolf.study.significance import OneSidedTest, bootstrap_interval, paired_test, welch_test

ALPHA = 0.01
"""A verdict requires a p-value below this."""
PACKED_STAGES = ("score_first", "sliding", "quantized")
"""The scores taken from the packed file, from the last to the first."""


@dataclass(frozen=True)
class Group:
    """The runs of one side of a comparison."""

    path: Path
    scores: list[RunScore]
    left_out: list[SeedRun]
    tokenizer_is_self_reported: bool = False
    """Whether the tokenizer of a run is not counted because of what a source.json says alone."""

    @property
    def bpb(self) -> Array:
        """By seed."""
        return np.array([score.bpb for score in self.scores])

    def nats_D(self) -> Array | None:
        """Return the loss of every document, averaged over the seeds; None if one is unknown."""
        known = [score.nats_D for score in self.scores if score.nats_D is not None]
        return np.mean(known, axis=0) if len(known) == len(self.scores) else None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "path": str(self.path),
            "seeds": [score.seed for score in self.scores],
            "bpb": self.bpb.tolist(),
            "loss_nats": [score.loss_nats for score in self.scores],
            "tokens": self.scores[0].tokens,
            "tokenizer_is_self_reported": self.tokenizer_is_self_reported,
            "left_out": [{"seed": run.seed, "state": run.state} for run in self.left_out],
        }


@dataclass(frozen=True)
class Comparison:
    """The result of comparing A with B; a gain is B's score minus A's."""

    a: Group
    b: Group
    stage: str
    margin_nats: float
    """Per token."""
    margin_bpb: float
    gain_bpb: float
    gain_nats: float | None
    """Per token; None if the groups have different tokens."""
    seeds: OneSidedTest | str
    """The test over seeds, or the reason why it does not apply."""
    documents: OneSidedTest | str
    """The test over documents, or the reason why it does not apply."""
    interval_bpb: tuple[float, float] | None
    """95 % interval of the gain over resampled documents."""

    @property
    def verdict(self) -> str:
        """One of "better", "not shown", "worse"; by the test over seeds where it applies."""
        test = self.documents if isinstance(self.seeds, str) else self.seeds
        if isinstance(test, str):
            return "not shown"
        if test.p_better < ALPHA:
            return "better"
        return "worse" if test.p_worse < ALPHA else "not shown"

    def verdict_line(self) -> str:
        """Return the verdict in words, with what it rests on."""
        groups = {"A": self.a, "B": self.b}
        named = [name for name, group in groups.items() if group.tokenizer_is_self_reported]
        if not named:
            return self._test_line()
        return f"{self._test_line()}; the tokenizer of {' and '.join(named)} is self-reported"

    def _test_line(self) -> str:
        by_seeds = not isinstance(self.seeds, str)
        test = self.seeds if by_seeds else self.documents
        margin = f"{self.margin_nats:g} nats per token ({self.margin_bpb:.4f} BPB)"
        words = {
            "better": f"A is better than B by more than {margin}",
            "not shown": f"not shown that A is better than B by {margin}",
            "worse": "A is worse than B",
        }[self.verdict]
        if isinstance(test, str):
            return words
        p = test.p_worse if self.verdict == "worse" else test.p_better
        units = "over seeds" if by_seeds else "over documents; says nothing about other seeds"
        return f"{words}: p = {p:.2g} {units} (needs p < {ALPHA:g})"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        first = self.a.scores[0]
        tests = {
            name: {"not_applicable": test} if isinstance(test, str) else test._asdict()
            for name, test in (("seeds", self.seeds), ("documents", self.documents))
        }
        values = {k: v for k, v in vars(self).items() if k not in ("a", "b", *tests)}
        return {
            "verdict": self.verdict,
            "verdict_line": self.verdict_line(),
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "text_sha256": first.text_sha256,
            "bytes": first.bytes,
            "label": first.label,
            "restores": first.restores,
            **values,
            **tests,
        }


def compare(path_a: Path, path_b: Path, stage: str, margin_nats: float) -> Comparison:
    """Compare two runs or folders of seeds.

    Args:
        path_a: the side that may be better.
        path_b: the other.
        stage: which score to compare; empty: the last one of the packed file that all runs have.
        margin_nats: per token, at least 0.

    Raises:
        ConfigError: if the margin is invalid.
        UserError: if a side has no finished run or no such stage, or if the text, its form, its
            bytes or the labels differ, or the tokens within one side.
    """
    if not 0 <= margin_nats < math.inf:
        raise ConfigError(f"invalid --margin-nats = {margin_nats}: expected 0 or more")
    paths = (path_a, path_b)
    found = [read_seeds(path) for path in paths]
    for path, runs in zip(paths, found, strict=True):
        if not runs.finished:
            raise UserError(f"{path} has no finished run: {runs.coverage()}")
    stage = stage or _last_common_stage([run for runs in found for run in runs.finished])
    a, b = (
        Group(
            path,
            [read_score(run, stage) for run in runs.finished],
            runs.left_out,
            any(is_self_reported(run.results["tokenizer"]) for run in runs.finished if run.results),
        )
        for path, runs in zip(paths, found, strict=True)
    )
    require_same(a.scores + b.scores, ("text_sha256", "restores", "bytes", "label"))
    for group in (a, b):
        require_same(group.scores, ("tokens",))
    require_same_documents(a.scores + b.scores)
    tokens_a, tokens_b = a.scores[0].tokens, b.scores[0].tokens
    num_bytes = a.scores[0].bytes
    margin_bpb = margin_nats / math.log(2) * tokens_b / num_bytes
    gain_bpb = float(b.bpb.mean() - a.bpb.mean())
    nats_a, nats_b = a.nats_D(), b.nats_D()
    documents, interval = f"{stage} is not scored from the packed file, by document", None
    if nats_a is not None and nats_b is not None:
        bits_D, bytes_D = (nats_b - nats_a) / math.log(2), a.scores[0].bytes_D
        documents = paired_test(bits_D, bytes_D, margin_bpb)
        interval = bootstrap_interval(bits_D, bytes_D)
    return Comparison(
        a=a,
        b=b,
        stage=stage,
        margin_nats=margin_nats,
        margin_bpb=margin_bpb,
        gain_bpb=gain_bpb,
        gain_nats=gain_bpb * math.log(2) * num_bytes / tokens_b if tokens_a == tokens_b else None,
        seeds=welch_test(a.bpb, b.bpb, margin_bpb),
        documents=documents,
        interval_bpb=interval,
    )


def _last_common_stage(runs: Sequence[SeedRun]) -> str:
    """Return the last stage of the packed file that all runs have.

    Raises:
        UserError: if they have none in common.
    """
    for stage in PACKED_STAGES:
        if all(stage in run.results["stages"] for run in runs if run.results):
            return stage
    raise UserError(f"these runs have none of {', '.join(PACKED_STAGES)} in common; see --stage")
