"""Is A better than B by a margin? Two tests that see different chance, and what they need.

* Over seeds: Welch's test (B. L. Welch, Biometrika 34, 1947), one-sided, of the scores of whole
  runs. Its units are seeds. It assumes that the runs of a side are independent draws of one roughly
  normal distribution; the sides may vary differently. It speaks of other seeds of both recipes, on
  this text.
* Over documents: for every document the difference of both sides' losses (each the mean over its
  seeds). Its units are documents, which are assumed to be independent draws of one source. As both
  sides meet the same documents, what makes a text hard cancels: far more power. It speaks of other
  documents of that source, for these very weights: a seed that is lucky on both stays lucky. The
  figure is the difference of all bits over all bytes, so that a document weighs what it has in
  bytes. The test takes that ratio's error from the jackknife and Student's t; the bootstrap
  (B. Efron, Annals of Statistics 7, 1979) computes the ratio again on resampled documents.

The margin is given in nats per token, as the challenge does (0.005). Where both sides have the same
tokens that is a difference of BPB; where tokenizers differ, nats per token do not compare, and the
margin is converted with B's tokens: it is B's loss that A has to be better than.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.study.runs import Member
from paramgolf.study.seeds import read_seeds

Array = NDArray[np.float64]

ALPHA = 0.01
"""A verdict holds if chance alone would give it at most this often."""
RESAMPLES = 10_000
PACKED_STAGES = ("score_first", "sliding", "quantized")
"""The scores that the artifact gives, from the last to the first."""

_MIN_BPB = 1e-12  # what rounding makes of no difference
_MAX_DRAWN = 1 << 22  # document numbers in memory at a time


class Scored(NamedTuple):
    """One run's score of one stage."""

    path: Path
    seed: int
    bpb: float
    loss_nats: float
    tokens: int
    bytes: int
    label: str
    text_sha256: str
    bytes_D: Array
    nats_D: Array | None
    """By document; None for a stage that is not of the packed file."""


@dataclass(frozen=True)
class Side:
    """One of the two sides."""

    path: Path
    scored: list[Scored]
    left_out: list[Member]

    @property
    def bpb(self) -> Array:
        """By seed."""
        return np.array([one.bpb for one in self.scored])

    def nats_D(self) -> Array | None:
        """By document, the mean over the seeds."""
        known = [one.nats_D for one in self.scored if one.nats_D is not None]
        return np.mean(known, axis=0) if len(known) == len(self.scored) else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "path": str(self.path),
            "seeds": [one.seed for one in self.scored],
            "bpb": self.bpb.tolist(),
            "loss_nats": [one.loss_nats for one in self.scored],
            "tokens": self.scored[0].tokens,
            "left_out": [{"seed": m.seed, "state": m.state} for m in self.left_out],
        }


class OneSided(NamedTuple):
    """A one-sided test in both directions."""

    p_better: float
    """How often chance would make A look this good, were A not better than B by the margin."""
    p_worse: float
    """How often chance would make A look this bad, were A not worse than B at all."""
    units: int


@dataclass(frozen=True)
class Comparison:
    """What there is to say about A against B; gains are B's score less A's."""

    a: Side
    b: Side
    stage: str
    margin_nats: float
    """Per token."""
    margin_bpb: float
    gain_bpb: float
    gain_nats: float | None
    """Per token; None where the sides have different tokens."""
    seeds: OneSided | str
    """Over seeds, or why not."""
    documents: OneSided | str
    """Over documents, or why not."""
    interval_bpb: tuple[float, float] | None
    """The gain on resampled documents: 2.5 % below, 2.5 % above."""

    @property
    def verdict(self) -> str:
        """One of "better", "not shown", "worse"; by the seeds, where there are enough."""
        test = self.documents if isinstance(self.seeds, str) else self.seeds
        if isinstance(test, str):
            return "not shown"
        if test.p_better < ALPHA:
            return "better"
        return "worse" if test.p_worse < ALPHA else "not shown"

    def verdict_line(self) -> str:
        """The verdict in words."""
        by_seeds = not isinstance(self.seeds, str)
        test = self.seeds if by_seeds else self.documents
        margin = f"{self.margin_nats:g} nats ({self.margin_bpb:.4f} BPB)"
        words = {
            "better": f"A is better than B by more than {margin}",
            "not shown": f"not shown that A is better than B by {margin}",
            "worse": "A is worse than B",
        }[self.verdict]
        if isinstance(test, str):
            return words
        p = test.p_worse if self.verdict == "worse" else test.p_better
        of = "over seeds" if by_seeds else "over documents; says nothing of other seeds"
        return f"{words}: p = {p:.2g} {of} (needs p < {ALPHA:g})"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        first = self.a.scored[0]
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
            **values,
            **tests,
        }


def compare(path_a: Path, path_b: Path, stage: str, margin_nats: float) -> Comparison:
    """Compare two runs or folders of seeds.

    Args:
        path_a: the side that may be better.
        path_b: the other.
        stage: of the score; empty: the last of the packed file that all runs have.
        margin_nats: per token, 0 or more.

    Raises:
        ConfigError: if the margin is not possible.
        UserError: if a side has no finished run, or no such stage, or anything differs that has
            to be the same: text, its bytes, label; within a side, the tokens.
    """
    if not 0 <= margin_nats < math.inf:
        raise ConfigError(f"invalid --margin-nats = {margin_nats}: expected 0 or more")
    found = [read_seeds(path) for path in (path_a, path_b)]
    for path, side in zip((path_a, path_b), found, strict=True):
        if not side.finished:
            raise UserError(f"{path} has no finished run: {side.over()}")
    members = [member for side in found for member in side.finished]
    stage = stage or _last_stage(members)
    a, b = (
        Side(path, [read_scored(member, stage) for member in side.finished], side.left_out)
        for path, side in zip((path_a, path_b), found, strict=True)
    )
    require_same(a.scored + b.scored, ("text_sha256", "bytes", "label"))
    for side in (a, b):
        require_same(side.scored, ("tokens",))
    _require_same_documents(a.scored + b.scored)
    tokens_a, tokens_b = a.scored[0].tokens, b.scored[0].tokens
    num_bytes = a.scored[0].bytes
    margin_bpb = margin_nats / math.log(2) * tokens_b / num_bytes
    gain = float(b.bpb.mean() - a.bpb.mean())
    nats_a, nats_b = a.nats_D(), b.nats_D()
    documents, interval = f"{stage} is not scored from the packed file, by document", None
    if nats_a is not None and nats_b is not None:
        bits_D, bytes_D = (nats_b - nats_a) / math.log(2), a.scored[0].bytes_D
        documents = paired_test(bits_D, bytes_D, margin_bpb)
        interval = bootstrap_interval(bits_D, bytes_D)
    same_tokens = tokens_a == tokens_b
    return Comparison(
        a, b, stage, margin_nats, margin_bpb, gain,
        gain * math.log(2) * num_bytes / tokens_b if same_tokens else None,
        welch_test(a.bpb, b.bpb, margin_bpb), documents, interval,
    )  # fmt: skip


def read_scored(member: Member, stage: str) -> Scored:
    """A finished run's score of a stage, with what it is by document.

    Raises:
        UserError: if there is no such stage, or documents.safetensors is missing or of another
            score.
    """
    assert member.results is not None
    stages = member.results["stages"]
    if stage not in stages:
        raise UserError(f"{member.path} has no score {stage!r}; it has {', '.join(stages)}")
    path = RunDir(member.path).documents
    if not path.exists():
        raise UserError(
            f"{member.path} has no {path.name}, so that its text is not known: remove its "
            f"stages/score.json, then `paramgolf run --resume {member.path}`"
        )
    tensors, notes = read_tensors(path)
    score = stages[stage]
    nats_D = tensors[stage].numpy().astype(np.float64) if stage in tensors else None
    if nats_D is not None:
        total = score["loss_nats"] * score["tokens"]
        if not math.isclose(nats_D.sum(), total, rel_tol=1e-6):
            raise UserError(
                f"{path} adds up to {nats_D.sum():.3f} nats, results.json to {total:.3f}: they "
                "are of different scores; remove stages/score.json and resume the run"
            )
    kept = {key: score[key] for key in ("bpb", "loss_nats", "tokens", "bytes", "label")}
    bytes_D = tensors["bytes"].numpy().astype(np.float64)
    return Scored(
        member.path, member.seed, **kept, text_sha256=notes["text_sha256"], bytes_D=bytes_D,
        nats_D=nats_D,
    )  # fmt: skip


def require_same(scored: Sequence[Scored], what: Sequence[str]) -> None:
    """Refuse scores that do not compare.

    Raises:
        UserError: naming the first thing that differs, with both values.
    """
    first = scored[0]
    for name in what:
        for one in scored[1:]:
            ours, theirs = getattr(first, name), getattr(one, name)
            if ours != theirs:
                ours, theirs = (
                    value[:16] if name == "text_sha256" else value for value in (ours, theirs)
                )
                raise UserError(
                    f"these scores do not compare: {name} is {ours} in {first.path} and {theirs} "
                    f"in {one.path}"
                )


def _require_same_documents(scored: Sequence[Scored]) -> None:
    first = scored[0]
    for one in scored[1:]:
        if not np.array_equal(first.bytes_D, one.bytes_D):
            raise UserError(
                f"these scores do not compare: {first.path} has {len(first.bytes_D):,} documents, "
                f"{one.path} {len(one.bytes_D):,}, cut at other places"
            )


def welch_test(a: Array, b: Array, margin: float) -> OneSided | str:
    """Welch's one-sided test that the mean of `a` is below that of `b` by more than `margin`.

    Args:
        a: scores of one side's runs, (S_a,); less is better.
        b: of the other's, (S_b,).
        margin: in the same unit.

    Returns:
        The test, or why there is none.
    """
    if min(len(a), len(b)) < 2:
        return "needs 2 seeds or more on both sides"
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return "the runs of neither side differ, so that nothing says how far chance goes"
    return OneSided(
        _p(stats.ttest_ind(a + margin, b, equal_var=False, alternative="less")),
        _p(stats.ttest_ind(a, b, equal_var=False, alternative="greater")),
        len(a) + len(b),
    )


def paired_test(bits_D: Array, bytes_D: Array, margin_bpb: float) -> OneSided | str:
    """Paired one-sided test over documents that the gain is more than `margin_bpb`.

    The gain is a ratio of sums. Its error is that of the jackknife (R. G. Miller, Biometrika 61,
    1974): how far the ratio moves without each of the documents. So long documents and short ones
    are no noise by themselves (as they were in a t-test of bits). Where few documents have most of
    the bytes there is little to learn an error from: the degrees of freedom are those of as many
    documents of one size as weigh the same (L. Kish, Survey Sampling, 1965).

    Args:
        bits_D: by document, B's bits less A's.
        bytes_D: its bytes.
        margin_bpb: bits per byte.

    Returns:
        The test, or why there is none.
    """
    count, num_bytes = len(bits_D), bytes_D.sum()
    weight = float(num_bytes**2 / (bytes_D**2).sum())
    if weight < 2:
        return f"{count:,} documents weigh as little as {weight:.1f} of one size; needs 2"
    ratios_D = (bits_D.sum() - bits_D) / (num_bytes - bytes_D)
    if np.ptp(ratios_D) < _MIN_BPB:
        return "all documents differ by the same, so that nothing says how far chance goes"
    error = math.sqrt((count - 1) * ratios_D.var())
    gain = bits_D.sum() / num_bytes
    better, worse = (gain - margin_bpb) / error, -gain / error
    p_better, p_worse = (float(stats.t.sf(t, weight - 1)) for t in (better, worse))
    return OneSided(p_better, p_worse, count)


def bootstrap_interval(
    bits_D: Array, bytes_D: Array, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of all bits over all bytes, documents resampled.

    Args:
        bits_D: by document.
        bytes_D: its bytes.
        resamples: how often.
        seed: of the draws, so that the same files give the same interval.
    """
    random = np.random.default_rng(seed)
    count, ratios = len(bits_D), np.empty(resamples)
    rows = max(1, _MAX_DRAWN // count)
    for begin in range(0, resamples, rows):
        drawn = random.integers(0, count, (min(rows, resamples - begin), count))
        ratios[begin : begin + rows] = bits_D[drawn].sum(1) / bytes_D[drawn].sum(1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def _p(result: Any) -> float:
    """A p-value; 1 where there is none, as nothing is shown then."""
    return 1.0 if math.isnan(result.pvalue) else float(result.pvalue)


def _last_stage(members: Sequence[Member]) -> str:
    for stage in PACKED_STAGES:
        if all(stage in member.results["stages"] for member in members if member.results):
            return stage
    raise UserError(f"these runs have none of {', '.join(PACKED_STAGES)} in common; see --stage")
