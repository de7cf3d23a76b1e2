"""The statistics of `compare` against formulas, brute force and known truth; what it refuses."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.files import write_json
from paramgolf.study.compare import compare
from paramgolf.study.significance import (
    OneSidedTest,
    bootstrap_interval,
    paired_test,
    welch_test,
)
from tests.written_runs import BYTES_D, NATS_D, TOKENS, write_run, write_seeds

LN2 = math.log(2)


def upper_tail(t: float, df: float) -> float:
    """Probability that Student's t is over `t`."""
    return float(special.stdtr(df, -t))


# Statistics.


@pytest.mark.parametrize(("num_a", "num_b"), [(2, 2), (3, 3), (3, 8), (5, 2)])
@pytest.mark.parametrize("seed", range(5))
def test_welch_agrees_with_the_formula(num_a: int, num_b: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a = random.normal(1.20, 0.004, num_a).tolist()
    b = random.normal(1.21, 0.010, num_b).tolist()
    margin = 0.004
    squares = [statistics.variance(side) / len(side) for side in (a, b)]
    df = sum(squares) ** 2 / sum(
        square**2 / (len(side) - 1) for square, side in zip(squares, (a, b), strict=True)
    )
    gain = statistics.fmean(b) - statistics.fmean(a)
    test = welch_test(np.array(a), np.array(b), margin)
    assert isinstance(test, OneSidedTest)
    error = math.sqrt(sum(squares))
    assert test.p_better == pytest.approx(upper_tail((gain - margin) / error, df), rel=1e-9)
    assert test.p_worse == pytest.approx(upper_tail(-gain / error, df), rel=1e-9)
    assert test.units == num_a + num_b


def test_welch_needs_two_seeds_that_differ() -> None:
    one, two = np.array([1.2]), np.array([1.2, 1.3])
    for a, b in ((one, two), (two, one)):
        assert "2 seeds" in str(welch_test(a, b, 0.0))
    assert "chance cannot be estimated" in str(welch_test(np.ones(3), np.zeros(3), 0.0))


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_test_is_a_jackknife_over_documents(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 5000, 40).tolist()
    bits = [size * random.normal(0.01, 0.02) for size in sizes]
    without = [
        sum(bits[:i] + bits[i + 1 :]) / sum(sizes[:i] + sizes[i + 1 :]) for i in range(len(bits))
    ]
    centre = statistics.fmean(without)
    error = math.sqrt(39 / 40 * sum((ratio - centre) ** 2 for ratio in without))
    gain = sum(bits) / sum(sizes)
    df = sum(sizes) ** 2 / sum(size**2 for size in sizes) - 1
    test = paired_test(np.array(bits), np.array(sizes, float), 0.004)
    assert isinstance(test, OneSidedTest)
    assert test.p_better == pytest.approx(upper_tail((gain - 0.004) / error, df), rel=1e-9)
    assert test.p_worse == pytest.approx(upper_tail(-gain / error, df), rel=1e-9)


def test_for_documents_of_equal_size_it_is_the_t_test() -> None:
    random = np.random.default_rng(8)
    bits_D, bytes_D = random.normal(20, 9, 30), np.full(30, 1000.0)
    test = paired_test(bits_D, bytes_D, 0.018)
    assert isinstance(test, OneSidedTest)
    expected = stats.ttest_rel(bits_D, 18 * np.ones(30), alternative="greater")
    assert test.p_better == pytest.approx(expected.pvalue, rel=1e-9)


def test_a_mix_of_long_and_short_documents_is_not_noise() -> None:
    """All gain about the same per byte: significant, though bits span three magnitudes."""
    bytes_D = np.array([10.0, 100, 1000, 10_000, 9000, 30, 300, 3000, 5000, 50, 8000, 7000])
    bits_D = bytes_D * np.random.default_rng(1).normal(0.25, 0.02, 12)
    test = paired_test(bits_D, bytes_D, 0.003)
    assert isinstance(test, OneSidedTest)
    assert test.p_better < 1e-4
    assert test.p_worse > 0.999


def test_the_paired_test_needs_documents_that_differ() -> None:
    for sizes in ([5.0], [9.0, 0, 0], [90.0, 5, 5, 20]):
        said = paired_test(np.arange(len(sizes)) + 1.0, np.array(sizes), 0.0)
        assert f"{len(sizes)} documents are effectively 1." in str(said)
    assert "differ by the same amount" in str(paired_test(np.ones(5), np.ones(5), 0.0))


def test_the_bootstrap_agrees_with_a_loop() -> None:
    random = np.random.default_rng(3)
    bytes_D = random.integers(50, 5000, 30).astype(float)
    bits_D = bytes_D * random.normal(0.01, 0.02, 30)
    ratios = []
    for _ in range(4000):
        drawn = [int(30 * random.random()) for _ in range(30)]
        ratios.append(sum(bits_D[i] for i in drawn) / sum(bytes_D[i] for i in drawn))
    ratios.sort()
    low, high = bootstrap_interval(bits_D, bytes_D)
    width = ratios[3900] - ratios[100]
    assert low == pytest.approx(ratios[100], abs=0.08 * width)
    assert high == pytest.approx(ratios[3900], abs=0.08 * width)
    assert (low, high) == bootstrap_interval(bits_D, bytes_D)


def test_the_bootstrap_of_many_documents_is_computed_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(4)
    bytes_D = random.integers(50, 5000, 64).astype(float)
    bits_D = bytes_D * random.normal(0.01, 0.02, 64)
    whole = bootstrap_interval(bits_D, bytes_D, 1000)
    monkeypatch.setattr("paramgolf.study.significance._MAX_DRAWN", 64 * 7)
    assert bootstrap_interval(bits_D, bytes_D, 1000) == whole


def test_coverage_on_data_of_known_truth() -> None:
    """The interval holds the true gain 95 times in 100; at the margin chance says better as often
    as it should."""
    truth, covered, better, welch = 0.01, 0, 0, 0
    for trial in range(600):
        random = np.random.default_rng(trial)
        bytes_D = random.integers(100, 4000, 80).astype(float)
        bits_D = bytes_D * (truth + random.normal(0, 0.02, 80))
        low, high = bootstrap_interval(bits_D, bytes_D, 400)
        covered += low <= truth <= high
        test = paired_test(bits_D, bytes_D, truth)
        assert isinstance(test, OneSidedTest)
        better += test.p_better < 0.05
        seeds = welch_test(random.normal(1.2, 0.01, 5), random.normal(1.21, 0.02, 5), truth)
        assert isinstance(seeds, OneSidedTest)
        welch += seeds.p_better < 0.05
    assert 0.91 < covered / 600 < 0.98
    assert 0.025 < better / 600 < 0.08
    assert 0.025 < welch / 600 < 0.08


# Runs.


def noisy(scale: float, seed: int) -> np.ndarray:
    return NATS_D * scale * (1 + 0.001 * np.random.default_rng(seed).normal(size=len(NATS_D)))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_seeds(tmp_path / "good", {seed: noisy(1.0, seed) for seed in (1, 2, 3)})


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return write_seeds(tmp_path / "bad", {seed: noisy(1.05, 9 + seed) for seed in (1, 2, 3)})


def test_better_worse_and_not_shown(good: Path, bad: Path) -> None:
    found = compare(good, bad, "", 0.005)
    assert (found.verdict, found.stage) == ("better", "sliding")
    assert found.margin_bpb == pytest.approx(0.005 / LN2 * TOKENS / BYTES_D.sum())
    nats = [[noisy(s, o + n).sum() for n in (1, 2, 3)] for s, o in ((1.0, 0), (1.05, 9))]
    gain = statistics.fmean(nats[1]) - statistics.fmean(nats[0])
    assert found.gain_bpb == pytest.approx(gain / LN2 / BYTES_D.sum())
    assert found.gain_nats == pytest.approx(gain / TOKENS)
    assert found.interval_bpb is not None
    assert found.interval_bpb[0] < found.gain_bpb < found.interval_bpb[1]
    assert "over seeds" in found.verdict_line()
    assert compare(bad, good, "", 0.005).verdict == "worse"
    assert compare(good, good, "", 0.005).verdict == "not shown"
    assert compare(good, bad, "", 0.3).verdict == "not shown"
    json.dumps(found.to_json())


def test_single_runs_are_compared_by_document(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", nats_D=noisy(1.0, 1))
    b = write_run(tmp_path / "b", nats_D=noisy(1.05, 2))
    found = compare(a, b, "", 0.005)
    assert "2 seeds" in str(found.seeds)
    assert found.verdict == "better"
    assert "says nothing about other seeds" in found.verdict_line()
    assert found.to_json()["seeds"] == {"not_applicable": found.seeds}


def test_a_stage_that_is_not_scored_from_the_packed_file_has_no_documents(
    good: Path, bad: Path
) -> None:
    found = compare(good, bad, "ema", 0.005)
    assert "not scored from the packed file" in str(found.documents)
    assert found.interval_bpb is None
    assert found.verdict == "better"


def test_different_tokens_are_compared_per_byte(tmp_path: Path, bad: Path) -> None:
    more = {seed: noisy(1.0, seed) for seed in (1, 2, 3)}
    a = write_seeds(tmp_path / "a", more, tokens=2 * TOKENS)
    found = compare(a, bad, "", 0.005)
    assert found.gain_nats is None
    assert found.margin_bpb == pytest.approx(0.005 / LN2 * TOKENS / BYTES_D.sum())
    assert found.verdict == "better"


def test_the_last_common_stage_is_compared(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", stages=("ema", "quantized", "sliding", "score_first"))
    b = write_run(tmp_path / "b", stages=("ema", "quantized", "sliding"))
    assert compare(a, a, "", 0.0).stage == "score_first"
    assert compare(a, b, "", 0.0).stage == "sliding"
    with pytest.raises(UserError, match=r"b has no score .*; it has ema, quantized, sliding"):
        compare(a, b, "score_first", 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": "another text"}, "text_sha256 is"),
        (
            {"restores": "nfkc_cf"},
            "restored as 'original' in .*good.* and 'nfkc_cf' in .*other; .* has less to predict",
        ),
        ({"label": "in-sample"}, "label is held-out in .*good.* and in-sample in .*other"),
        ({"bytes_D": BYTES_D + 1}, "bytes is 2000 in .*good.* and 2006 in .*other"),
        ({"bytes_D": BYTES_D[::-1].copy()}, "split at different places"),
    ],
)
def test_scores_that_are_not_comparable_are_refused(
    good: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    other = write_run(tmp_path / "other", **options)  # type: ignore[arg-type]
    for sides in ((good, other), (other, good)):
        with pytest.raises(UserError, match="are not comparable") as caught:
            compare(*sides, "", 0.005)
    assert not isinstance(caught.value, ConfigError)
    with pytest.raises(UserError, match=words):
        compare(good, other, "", 0.005)


@pytest.mark.parametrize("options", [{"label": "in-sample"}, {"tokens": 701}, {"text": "other"}])
def test_runs_of_one_side_must_be_comparable(
    good: Path, bad: Path, options: dict[str, object]
) -> None:
    write_run(good / "seed-4", 4, **options)  # type: ignore[arg-type]
    name = {"text": "text_sha256"}.get(*options, *options)
    with pytest.raises(UserError, match=f"are not comparable: {name} is .*seed-1.*seed-4"):
        compare(good, bad, "", 0.005)


def test_unfinished_seeds_are_named(good: Path, bad: Path) -> None:
    (good / "seed-2" / "results.json").unlink()
    found = compare(good, bad, "", 0.005)
    assert [(m.seed, m.state) for m in found.a.left_out] == [(2, "not finished")]
    assert found.to_json()["a"]["left_out"] == [{"seed": 2, "state": "not finished"}]
    assert [one.seed for one in found.a.scores] == [1, 3]
    for seed in (1, 3):
        (good / f"seed-{seed}" / "results.json").unlink()
    with pytest.raises(UserError, match="no finished run: 0 of 3 seeds"):
        compare(good, bad, "", 0.005)


def test_missing_files_and_files_of_another_score(good: Path, bad: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a run .* nor a folder of seeds"):
        compare(tmp_path / "nothing", bad, "", 0.005)
    with pytest.raises(ConfigError, match="margin-nats = -1"):
        compare(good, bad, "", -1)
    results = json.loads((good / "seed-1" / "results.json").read_text())
    results["stages"]["sliding"]["loss_nats"] *= 1.001
    write_json(good / "seed-1" / "results.json", results)
    with pytest.raises(UserError, match="to different scores"):
        compare(good, bad, "", 0.005)
    (good / "seed-1" / "documents.safetensors").unlink()
    with pytest.raises(UserError, match=r"no documents\.safetensors"):
        compare(good, bad, "", 0.005)
