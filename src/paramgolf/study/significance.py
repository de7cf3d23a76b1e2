"""Statistical tests of whether one group of runs scores better than another by a margin.

Two tests look at two different sources of chance:

* Over seeds: Welch's one-sided test (B. L. Welch, Biometrika 34, 1947) on the scores of whole runs.
  Its units are seeds. It assumes that the runs of a group are independent draws from a roughly
  normal distribution; the two groups may have different variances. It generalises to other seeds
  of both recipes, on this text.
* Over documents: for every document, the difference between the two groups' losses (each the mean
  over the group's seeds). Its units are documents, which are assumed to be independent draws from
  one source. Since both groups score the same documents, what makes a document hard cancels out,
  which gives this test far more power. It generalises to other documents of that source, but only
  for these very weights: a seed that is lucky on both stays lucky. The statistic is the difference
  of all bits over all bytes, so that a document counts in proportion to its bytes. The test takes
  the standard error of that ratio from the jackknife and uses Student's t; the bootstrap
  (B. Efron, Annals of Statistics 7, 1979) recomputes the ratio on resampled documents.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from paramgolf.study.scores import Array

RESAMPLES = 10_000

_MIN_BPB = 1e-12  # differences below this are rounding
_MAX_DRAWN = 1 << 22  # document numbers in memory at a time


class OneSidedTest(NamedTuple):
    """A one-sided test in both directions."""

    p_better: float
    """How often chance would make A look this good if A were not better than B by the margin."""
    p_worse: float
    """How often chance would make A look this bad if A were not worse than B at all."""
    units: int


def welch_test(a: Array, b: Array, margin: float) -> OneSidedTest | str:
    """Test that the mean of `a` is below that of `b` by more than `margin` (Welch, one-sided).

    Args:
        a: scores of one group's runs, (S_a,); lower is better.
        b: scores of the other's, (S_b,).
        margin: in the same unit.

    Returns:
        The test, or the reason why it does not apply.
    """
    if min(len(a), len(b)) < 2:
        return "needs 2 seeds or more on both sides"
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return "no run differs from the others of its side, so chance cannot be estimated"
    return OneSidedTest(
        _p_value(stats.ttest_ind(a + margin, b, equal_var=False, alternative="less")),
        _p_value(stats.ttest_ind(a, b, equal_var=False, alternative="greater")),
        len(a) + len(b),
    )


def paired_test(bits_D: Array, bytes_D: Array, margin_bpb: float) -> OneSidedTest | str:
    """Test over paired documents that the gain is more than `margin_bpb` (one-sided).

    The gain is a ratio of sums. Its standard error is that of the jackknife (R. G. Miller,
    Biometrika 61, 1974): how far the ratio moves when each document in turn is left out. A mix of
    long and short documents is therefore not noise in itself (as it would be in a t-test of bits).
    Where a few documents have most of the bytes, there is little to estimate an error from: the
    degrees of freedom are those of the effective number of equally long documents (L. Kish, Survey
    Sampling, 1965).

    Args:
        bits_D: by document, B's bits minus A's.
        bytes_D: bytes of every document.
        margin_bpb: bits per byte.

    Returns:
        The test, or the reason why it does not apply.
    """
    count, num_bytes = len(bits_D), bytes_D.sum()
    effective = float(num_bytes**2 / (bytes_D**2).sum())
    if effective < 2:
        return f"{count:,} documents are effectively {effective:.1f} of equal size; needs 2"
    ratios_D = (bits_D.sum() - bits_D) / (num_bytes - bytes_D)
    if np.ptp(ratios_D) < _MIN_BPB:
        return "all documents differ by the same amount, so chance cannot be estimated"
    error = math.sqrt((count - 1) * ratios_D.var())
    gain = bits_D.sum() / num_bytes
    better, worse = (gain - margin_bpb) / error, -gain / error
    p_better, p_worse = (float(stats.t.sf(t, effective - 1)) for t in (better, worse))
    return OneSidedTest(p_better, p_worse, count)


def bootstrap_interval(
    bits_D: Array, bytes_D: Array, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of all bits over all bytes, resampling documents.

    Args:
        bits_D: bits of every document.
        bytes_D: its bytes.
        resamples: number of resamples.
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


def _p_value(result: Any) -> float:
    """Return a test's p-value; 1 where it is undefined, since nothing is shown then."""
    return 1.0 if math.isnan(result.pvalue) else float(result.pvalue)
