"""Whole runs: the files that they write, and that every number in them is correct."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

import paramgolf
from paramgolf.checked import to_json
from paramgolf.model.gpt import GPT
from paramgolf.runtime.ledger import account
from tests.e2e import command
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import (
    MINI,
    events,
    mini_config,
    read_results,
    require_same_artifact,
    stages_started,
    table_rows,
    texts_of,
    without_times,
)
from tests.reference import Scorer, encoded, impossible_successors

TITLES = {
    "after EMA": "ema",
    "after adaptation": "adapted",
    "quantized, plain": "quantized",
    "quantized, sliding": "sliding",
}
NUM_TARGETS = MINI["data"]["val_targets"]
SEQ_LEN, STRIDE = MINI["model"]["seq_len"], MINI["score"]["stride"]


@pytest.fixture(scope="session")
def tiny(options: list[str]) -> list[str]:
    """The arguments that start a mini run."""
    return ["run", "tiny", *options]


def labels(results: dict[str, Any]) -> dict[str, str]:
    return {stage: score["label"] for stage, score in results["stages"].items()}


def printed_labels(stdout: str) -> dict[str, str]:
    return {TITLES[row[0]]: row[-1] for row in table_rows(stdout) if row[0] in TITLES}


def content(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder and its subfolders."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Files and figures.


def test_results_have_the_documented_keys(mini_run: FinishedRun, source: Path) -> None:
    results = read_results(mini_run.path)
    assert list(results) == [
        "recipe", "seed", "corpus", "text", "tokenizer", "overlap", "order", "num_ranks",
        "adapted_on", "parameters", "steps", "stages", "adaptation", "bytes", "artifact_sha256",
        "raised_dampings", "seconds", "budgets", "tokens_per_second", "peak_gpu_bytes", "xz",
    ]  # fmt: skip
    assert (results["recipe"], results["seed"]) == ("tiny", 1337)
    assert (results["steps"], results["adapted_on"]) == (6, "adapt")
    assert results["corpus"]["source"] == str(source)
    assert results["peak_gpu_bytes"] is None
    assert list(results["stages"]) == list(TITLES.values())
    for score in results["stages"].values():
        assert list(score) == [
            "loss_nats", "bpb", "tokens", "bytes", "bytes_are", "label", "overlap_share",
            "seen_documents", "documents", "seen_bytes",
        ]  # fmt: skip
        assert score["bytes_are"] == "original"
        assert score["tokens"] == NUM_TARGETS
        assert 1 < score["bpb"] < 6
        bits = score["loss_nats"] * score["tokens"] / math.log(2)
        assert score["bpb"] == pytest.approx(bits / score["bytes"], rel=1e-12)
        assert score["label"] == "held-out"
    assert len({score["bytes"] for score in results["stages"].values()}) == 1
    assert [epoch["epoch"] for epoch in results["adaptation"]] == [1, 2]
    assert results["adaptation"][-1]["bpb"] == results["stages"]["adapted"]["bpb"]
    assert set(results["tokens_per_second"]) == {
        "train", "train_recurrence_off", "train_recurrence_on", "adapt_steps", "score_quantized",
        "score_sliding",
    }  # fmt: skip
    assert all(rate > 0 for rate in results["tokens_per_second"].values())


def test_every_stage_makes_the_model_better_or_hardly_worse(mini_run: FinishedRun) -> None:
    stages = read_results(mini_run.path)["stages"]
    assert stages["adapted"]["bpb"] < stages["ema"]["bpb"]
    assert stages["quantized"]["bpb"] == pytest.approx(stages["adapted"]["bpb"], rel=0.01)
    assert stages["sliding"]["bpb"] != stages["quantized"]["bpb"]


def test_bytes_by_part_add_up_to_the_file(mini_run: FinishedRun) -> None:
    results = read_results(mini_run.path)
    artifact = mini_run.path / "model.bin"
    assert results["bytes"]["model"] == artifact.stat().st_size
    code, tokenizer = (mini_run.path / name for name in ("train_gpt.py", "tokenizer.model"))
    assert results["bytes"]["code"] == code.stat().st_size
    assert results["bytes"]["tokenizer"] == tokenizer.stat().st_size
    assert results["bytes"]["total"] == artifact.stat().st_size + code.stat().st_size
    assert sum(results["bytes"]["by_part"].values()) == artifact.stat().st_size
    assert results["bytes"]["budget"] == MINI["pack"]["budget_bytes"]
    assert results["artifact_sha256"] == hashlib.sha256(artifact.read_bytes()).hexdigest()
    model = GPT(mini_config(Path("x")).model)
    assert results["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_seconds_by_phase_cover_the_run(mini_run: FinishedRun) -> None:
    seconds = read_results(mini_run.path)["seconds"]
    stages = {name.split(":")[0] for name in seconds}
    assert stages == {"set-up", "data", "train", "adapt", "pack", "score", "prepare"}
    assert all(value >= 0 for value in seconds.values())
    lines = events(mini_run.path)
    wall = lines[-1]["time"] - lines[0]["time"]
    in_phases = sum(seconds.values()) - seconds["set-up: imports"]
    assert in_phases == pytest.approx(wall, rel=0.1)
    assert sum(read_results(mini_run.path)["budgets"].values()) == pytest.approx(
        sum(seconds.values())
    )


def test_documents_add_up_to_the_scores(mini_run: FinishedRun, source: Path) -> None:
    documents = load_file(mini_run.path / "documents.safetensors")
    stages = read_results(mini_run.path)["stages"]
    num_bytes = documents.pop("bytes")
    assert sorted(documents) == ["quantized", "sliding"]
    # The text ends inside its last document.
    sizes = [len(text.encode()) for text in texts_of(source, "val")]
    assert num_bytes[:-1].tolist() == sizes[: len(num_bytes) - 1]
    for stage, nats in documents.items():
        assert nats.shape == num_bytes.shape
        bits_per_byte = float(nats.sum()) / math.log(2) / int(num_bytes.sum())
        assert bits_per_byte == pytest.approx(stages[stage]["bpb"], rel=1e-12)


def test_events_name_every_stage_and_epoch(mini_run: FinishedRun) -> None:
    happened = [(event["event"], event.get("stage", "")) for event in events(mini_run.path)]
    stages = ["prepare", "train", "adapt", "pack", "score"]
    bounds = [step for step in happened if step[0].startswith("stage_")]
    assert bounds == [(f"stage_{what}", s) for s in stages for what in ("started", "finished")]
    assert happened.count(("adapt_epoch", "")) == 2


def test_printed_table_matches_the_results(mini_run: FinishedRun) -> None:
    results = read_results(mini_run.path)
    rows = {row[0]: row[1:] for row in table_rows(mini_run.stdout)}
    for title, stage in TITLES.items():
        score = results["stages"][stage]
        assert rows[title] == [
            f"{score['bpb']:.4f}",
            f"{score['loss_nats']:.4f}",
            f"{score['tokens']:,}",
            f"{score['bytes']:,}",
            score["label"],
        ]
    xz = results["xz"]
    assert f"xz -9     {xz['bpb']:.4f} bits per byte" in mini_run.stdout
    for phase, value in results["seconds"].items():
        budget, reason = account(phase, "adapt")
        assert rows[phase][0] == f"{value:.1f}"
        # Long reasons are wrapped.
        assert (f"not counted: {reason}" if reason else budget).startswith(rows[phase][1])
    assert f"sha256 {results['corpus']['sha256'][:16]}" in mini_run.stdout


def test_score_size_and_next_commands_are_printed_last(mini_run: FinishedRun) -> None:
    results = read_results(mini_run.path)
    size, score = results["bytes"], results["stages"]["sliding"]
    assert mini_run.stdout.splitlines()[-5:] == [
        f"score     {score['bpb']:.4f} BPB, {score['label']} (quantized, sliding)",
        f"size      {size['total']:,} of {size['budget']:,} bytes "
        f"(model.bin {size['model']:,}, code {size['code']:,})",
        f"run       {mini_run.path}",
        f"next      paramgolf report {mini_run.path}",
        f'          paramgolf generate {mini_run.path} --prompt "Return the"',
    ]


def test_seconds_by_phase_are_printed_only_if_verbose(
    cli: Cli, mini_run: FinishedRun, run_copy: Path
) -> None:
    assert "seconds by phase" in mini_run.stdout
    assert "train: steps" not in cli.output("run", "--resume", run_copy)


def test_configuration_is_kept(mini_run: FinishedRun, source: Path) -> None:
    kept = json.loads((mini_run.path / "config.json").read_text())
    assert kept == {"recipe": "tiny", **to_json(mini_config(source))}


def test_every_matrix_is_reported(mini_run: FinishedRun) -> None:
    reports = json.loads((mini_run.path / "quantization.json").read_text())
    assert len(reports) == 1 + 6 * MINI["model"]["num_layers"]
    for report in reports.values():
        # The code takes three quarters of the budget of this run, which leaves wide bins.
        assert 0 < report["gptq_error"] < report["nearest_error"] < 0.16
        assert 0 < report["entropy_bits"] < 8
        assert 0 <= report["clipped_share"] < 0.05
        assert 0.02 <= report["bin_width"] <= 2
    assert len({report["bin_width"] for report in reports.values()}) > len(reports) / 2


# Scores, recomputed.


@pytest.fixture(scope="module")
def scorer(cli: Cli, mini_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """The second implementation, on the run's exported weights."""
    folder = tmp_path_factory.mktemp("exported") / "weights"
    cli.output("export", mini_run.path, "--out", folder)
    impossible = impossible_successors(mini_run.path / "tokenizer.model", user_defined="\n")
    return Scorer(folder, impossible)


@pytest.fixture(scope="module")
def stream(mini_run: FinishedRun, source: Path) -> list[int]:
    """All tokens of the validation file, encoded by SentencePiece alone."""
    return encoded(mini_run.path / "tokenizer.model", texts_of(source, "val"))


def _decoded_bytes(mini_run: FinishedRun, tokens: list[int]) -> int:
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(mini_run.path / "tokenizer.model")
    )
    texts = [[]]
    for token in tokens:
        if token == processor.bos_id():
            texts.append([])
        else:
            texts[-1].append(token)
    return sum(len(processor.decode(text).encode()) for text in texts)


def test_splits_are_what_they_should_be(mini_run: FinishedRun, stream: list[int]) -> None:
    tokens = read_results(mini_run.path)["corpus"]["tokens"]
    assert tokens["val"] == NUM_TARGETS + 1
    next_document = stream.index(1, NUM_TARGETS + 1)  # 1 is BOS
    assert tokens["adapt"] == len(stream) - next_document


@pytest.mark.parametrize(("stage", "stride"), [("quantized", 0), ("sliding", STRIDE)])
def test_scores_from_a_second_implementation(
    mini_run: FinishedRun, scorer: Scorer, stream: list[int], stage: str, stride: int
) -> None:
    """Against NumPy in float64, from exported weights, window by window."""
    scored = stream[: NUM_TARGETS + 1]
    total = float(scorer.losses(scored, stride).sum())
    score = read_results(mini_run.path)["stages"][stage]
    assert score["bytes"] == _decoded_bytes(mini_run, scored)
    assert score["loss_nats"] == pytest.approx(total / NUM_TARGETS, rel=0, abs=1e-6)
    assert score["bpb"] == pytest.approx(total / math.log(2) / score["bytes"], rel=0, abs=1e-6)


def test_xz_for_scale(mini_run: FinishedRun, stream: list[int]) -> None:
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(mini_run.path / "tokenizer.model")
    )
    text = processor.decode(stream[: NUM_TARGETS + 1]).encode()
    results = read_results(mini_run.path)
    expected = len(lzma.compress(text, preset=9))
    assert results["xz"]["bytes"] == expected
    assert results["xz"]["bpb"] == pytest.approx(8 * expected / len(text))


# `paramgolf score`.


def score_rows(cli: Cli, artifact: Path, *arguments: str | Path, cwd: Path) -> dict[str, list[str]]:
    """Return the printed cells by file."""
    result = cli("score", artifact, *arguments, cwd=cwd)
    assert (result.code, result.stderr) == (0, ""), result.stderr
    return {row[0]: row[1:] for row in table_rows(result.stdout)}


TEXTS = {
    "long.txt": "A generator function returns an iterator, as PEP 255 says. " * 40,
    "short.txt": "Few words.",
    "one.txt": "x",
    "lines.txt": "tab\there\r\n  and  spaces \n\n\ntrailing \n",
    "unicode.txt": "\ufeffna\u00efve \u65e5\u672c\u8a9e \U0001f600 and </s> <0x41>",
    "digits.txt": "0123456789" * 3,
}


@pytest.mark.parametrize("stride", [None, 0, 7, 64])
def test_score_prints_what_the_predictor_computes(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path, stride: int | None
) -> None:
    artifact = mini_run.path / "model.bin"
    predictor = paramgolf.load(artifact, device="cpu")
    for name, text in TEXTS.items():
        (tmp_path / name).write_bytes(text.encode())
    chosen = [] if stride is None else ["--stride", str(stride)]
    rows = score_rows(cli, artifact, *TEXTS, *chosen, cwd=tmp_path)
    assert list(rows) == [*TEXTS, "total"]
    for name, text in TEXTS.items():
        text = text.removeprefix("\ufeff")  # no part of the text that a file contains
        score = predictor.score(text, stride)
        assert score.bytes == len(text.encode())
        shown = [
            f"{score.bpb:.4f}",
            f"{score.loss_nats:.4f}",
            f"{score.tokens:,}",
            f"{score.bytes:,}",
        ]
        assert rows[name][:4] == shown, name
        assert rows[name][4].startswith(score.label)


def test_stride_matters_only_beyond_one_window(mini_run: FinishedRun) -> None:
    predictor = paramgolf.load(mini_run.path / "model.bin", device="cpu")
    short, long = TEXTS["short.txt"], TEXTS["long.txt"]
    assert predictor.score(short).tokens < SEQ_LEN < predictor.score(long).tokens
    assert predictor.score(short, 0) == predictor.score(short, 16)
    assert predictor.score(long, 0).bpb != predictor.score(long, 16).bpb
    assert predictor.score(long) == predictor.score(long, STRIDE)


def test_labels_of_texts_that_shaped_the_model(
    cli: Cli, mini_run: FinishedRun, source: Path, tmp_path: Path
) -> None:
    val = [text for text in texts_of(source, "val") if len(text) > 1200]
    train = [text for text in texts_of(source, "train") if len(text) > 1200]
    for name, text in {"val": val[0], "adapt": val[-1], "train": train[0]}.items():
        (tmp_path / name).write_bytes(text.encode())
    rows = score_rows(cli, mini_run.path / "model.bin", "val", "adapt", "train", cwd=tmp_path)
    assert rows["val"][4:] == ["held-out", "0.0%"]
    assert rows["adapt"][4:] == ["in-sample", "100.0%"]
    assert rows["train"][4:] == ["in-sample", "100.0%"]


def test_score_from_artifact_and_tokenizer_alone(
    cli: Cli, mini_run: FinishedRun, source: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("model.bin", "tokenizer.model"):
        shutil.copy(mini_run.path / name, alone)
    (tmp_path / "text").write_bytes(texts_of(source, "val")[0].encode())
    in_run = score_rows(cli, mini_run.path / "model.bin", "text", cwd=tmp_path)["text"]
    result = command.run("score", "model.bin", "../text", cwd=alone)
    assert (result.code, result.stderr) == (0, "")
    (apart,) = table_rows(result.stdout)
    assert apart[1:5] == in_run[:4]
    assert (apart[5:], in_run[4:]) == (["unverified", ""], ["held-out", "0.0%"])
    assert sorted(path.name for path in alone.iterdir()) == ["model.bin", "tokenizer.model"]


# Adaptation on the scored text is labelled wherever its score is shown.


@pytest.fixture(scope="module")
def in_sample_run(
    cli: Cli, tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> FinishedRun:
    path = tmp_path_factory.mktemp("in-sample") / "run"
    stdout = cli.output(*tiny, "--adapt.text", "scored", "--out", path)
    return FinishedRun(path, stdout)


def test_in_sample_labels(in_sample_run: FinishedRun, mini_run: FinishedRun) -> None:
    results = read_results(in_sample_run.path)
    expected = {
        "ema": "held-out",
        "adapted": "in-sample",
        "quantized": "in-sample",
        "sliding": "in-sample",
    }
    assert labels(results) == expected
    assert printed_labels(in_sample_run.stdout) == expected
    assert {epoch["label"] for epoch in results["adaptation"]} == {"in-sample"}
    assert in_sample_run.stdout.count("BPB (in-sample)") == 2
    assert results["adapted_on"] == "scored"
    assert results["stages"]["ema"] == read_results(mini_run.path)["stages"]["ema"]


def test_score_of_a_scored_document_is_in_sample_however_edited(
    cli: Cli, in_sample_run: FinishedRun, source: Path, tmp_path: Path
) -> None:
    text = next(text for text in texts_of(source, "val") if len(text) > 1200)
    edits = {
        "as-it-was": text,
        "double-spaced": text.replace(" ", "  "),
        "one-line": " ".join(text.split()),
        "a-word-a-line": "\n".join(text.split()),
        "upper-case": text.upper(),
        "first-half": text[: len(text) // 2],
        "in-other-text": "Words before. " * 20 + text + "Words behind. " * 20,
    }
    for name, edited in edits.items():
        (tmp_path / name).write_bytes(edited.encode())
    rows = score_rows(cli, in_sample_run.path / "model.bin", *edits, cwd=tmp_path)
    for name in edits:
        assert rows[name][4] == "in-sample", name


def test_run_without_adaptation(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path
) -> None:
    stdout = cli.output(*tiny, "--adapt.text", "none", "--out", tmp_path / "run")
    results = read_results(tmp_path / "run")
    assert labels(results) == dict.fromkeys(("ema", "quantized", "sliding"), "held-out")
    assert printed_labels(stdout) == labels(results)
    assert results["adaptation"] == []
    assert not (tmp_path / "run" / "checkpoints" / "adapted.safetensors").exists()
    assert results["stages"]["ema"] == read_results(mini_run.path)["stages"]["ema"]
    val = texts_of(source=Path(results["corpus"]["source"]), split="val")
    predictor = paramgolf.load(tmp_path / "run" / "model.bin", device="cpu")
    assert predictor.score(val[-1]).label == "held-out"  # the adaptation text shaped nothing


# Seeds, and other formats of the same text.


def require_same_tensors(ours: Path, theirs: Path) -> None:
    first, second = load_file(ours), load_file(theirs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_same_seed_same_bytes(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path
) -> None:
    stdout = cli.output(*tiny, cwd=tmp_path)
    (again,) = (tmp_path / "runs").iterdir()  # no --out: runs/RECIPE-DATE-TIME
    assert again.name.startswith("tiny-20")
    assert f"runs/{again.name}" in stdout
    require_same_artifact(again, mini_run.path)
    for name in ("ema", "adapted"):
        file = Path("checkpoints", f"{name}.safetensors")
        require_same_tensors(again / file, mini_run.path / file)
    assert without_times(read_results(again)) == without_times(read_results(mini_run.path))


def test_another_seed_differs(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path
) -> None:
    cli.output(*tiny, "--seed", "7", "--out", tmp_path / "run")
    ours, theirs = read_results(tmp_path / "run"), read_results(mini_run.path)
    assert ours["seed"] == 7
    assert ours["corpus"] == theirs["corpus"]
    assert ours["artifact_sha256"] != theirs["artifact_sha256"]
    for stage in TITLES.values():
        assert ours["stages"][stage]["bpb"] != theirs["stages"][stage]["bpb"]


def test_compressed_text_is_the_same_text(
    cli: Cli, mini_run: FinishedRun, source: Path, tiny: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "compressed"
    folder.mkdir()
    train, val = ((source / f"{name}.jsonl").read_bytes() for name in ("train", "val"))
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(train))
    (folder / "val.jsonl.xz").write_bytes(lzma.compress(val))
    cli.output(*tiny, "--data.source", "compressed", "--out", "run", cwd=tmp_path)
    corpora = (read_results(run)["corpus"] for run in (tmp_path / "run", mini_run.path))
    assert len({corpus["sha256"] for corpus in corpora}) == 1
    require_same_artifact(tmp_path / "run", mini_run.path)


def test_shards_of_a_run_train_the_same_weights(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path
) -> None:
    data = mini_run.path / "data"
    changes = ["--data.source", str(data), "--adapt.text", "none", "--data.val-targets", "0"]
    assert "--data.tokenizer" in cli.error(*tiny, *changes, "--out", tmp_path / "refused")
    tokenizer = ["--data.tokenizer", str(mini_run.path / "tokenizer.model")]
    cli.output(*tiny, *changes, *tokenizer, "--out", tmp_path / "run")
    ema = Path("checkpoints", "ema.safetensors")
    require_same_tensors(tmp_path / "run" / ema, mini_run.path / ema)
    ours, theirs = read_results(tmp_path / "run"), read_results(mini_run.path)
    assert ours["stages"]["ema"] == theirs["stages"]["ema"] | {"bytes_are": "as decoded"}
    assert not list((tmp_path / "run" / "data").glob("text_train*"))  # used where they are


# Training by the clock.


CLOCK = """
from types import SimpleNamespace
from paramgolf.stages import train
now = 0.0
def monotonic():
    global now
    now += 0.05
    return now
train.time = SimpleNamespace(monotonic=monotonic)
"""


def test_training_by_the_clock_stays_within_its_budget(
    cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    clock = ["--train.max-steps", "0", "--train.max-seconds", "2", "--train.reserve-seconds", "0.5"]
    more = ["--train.checkpoint-seconds", "0.2", "--adapt.text", "none", "--out", tmp_path / "run"]
    result = cli(*tiny, *clock, *more, patch=CLOCK)
    assert (result.code, result.stderr) == (0, "")
    results = read_results(tmp_path / "run")
    assert results["steps"] > 6
    assert 1.2 < results["seconds"]["train: steps"] <= 1.5
    rates = results["tokens_per_second"]
    assert rates["train_recurrence_off"] > 0
    assert rates["train_recurrence_on"] > 0
    assert rates["train"] == pytest.approx(
        512 * results["steps"] / results["seconds"]["train: steps"], rel=0.3
    )


# --from: trained weights of another run.


def test_from_takes_trained_and_adapted_weights_over(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path
) -> None:
    before = content(mini_run.path)
    out = tmp_path / "run"
    coarse = [
        "--pack.matrix-bin-width",
        "0.9",
        "--score.stride",
        "32",
        "--pack.fill-budget",
        "False",
    ]
    stdout = cli.output(*tiny, *coarse, "--from", mini_run.path, "--out", out)
    for stage in ("prepare", "train", "adapt"):
        assert f"{stage}: finished before" in stdout
    assert stages_started(out) == ["prepare", "train", "adapt", "pack", "score"]
    ours, theirs = read_results(out), read_results(mini_run.path)
    for stage in ("ema", "adapted"):
        assert ours["stages"][stage] == theirs["stages"][stage]
    assert ours["seconds"]["train: steps"] == theirs["seconds"]["train: steps"]
    assert ours["bytes"]["model"] < theirs["bytes"]["model"]  # wider bins
    assert ours["stages"]["quantized"]["bpb"] != theirs["stages"]["quantized"]["bpb"]
    assert content(mini_run.path) == before
    # The new run does not depend on the old one.
    moved = Path(shutil.move(out, tmp_path / "moved"))
    assert paramgolf.load(moved / "model.bin", device="cpu").score("Some words.").bytes == 11


@pytest.mark.slow
def test_from_adapts_anew_where_adaptation_differs(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    more = ["--adapt.epochs", "3"]
    stdout = cli.output(*tiny, *more, "--from", mini_run.path, "--out", out)
    assert "train: finished before" in stdout
    assert "adapt: finished before" not in stdout
    assert len(read_results(out)["adaptation"]) == 3
    cli.output(*tiny, *more, "--out", tmp_path / "at-once")
    require_same_artifact(out, tmp_path / "at-once")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("--train.max-steps", "7"),
        ("--train.ema-share", "0.6"),
        ("--model.query-gain", "2.5"),
        ("--data.val-targets", "2000"),
        ("--seed", "5"),
    ],
)
def test_from_refuses_what_would_train_other_weights(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path, key: str, value: str
) -> None:
    out = tmp_path / "deep" / "run"
    message = cli.error(*tiny, key, value, "--from", mini_run.path, "--out", out, code=2)
    assert f"{key.removeprefix('--')} differs" in message
    assert str(mini_run.path) in message
    assert list(tmp_path.iterdir()) == []


def test_from_nothing(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    assert "contains no run" in cli.error(
        *tiny, "--from", tmp_path / "nothing", "--out", tmp_path / "run"
    )
    assert list(tmp_path.iterdir()) == []


# Runs that cannot be finished.


def test_budget_too_small(cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    budget = (mini_run.path / "train_gpt.py").stat().st_size + 4_500
    message = cli.error(*tiny, "--pack.budget-bytes", str(budget), "--out", out)
    assert f"--pack.budget-bytes = {budget:,} cannot be met" in message
    (least,) = re.findall(rf"--from {out} --pack.budget-bytes (\d+)", message)
    assert not (out / "results.json").exists()
    for name in ("ema", "adapted"):
        assert all(
            tensor.isfinite().all()
            for tensor in load_file(out / "checkpoints" / f"{name}.safetensors").values()
        )
    assert cli.error("run", "--resume", out) == message
    # What the message proposes works.
    budget = ["--pack.budget-bytes", least]
    stdout = cli.output(*tiny, *budget, "--from", out, "--out", tmp_path / "second")
    assert "adapt: finished before" in stdout
    assert read_results(tmp_path / "second")["bytes"]["total"] <= int(least)


@pytest.mark.parametrize("budget", [77_000, 78_500, 84_000])
def test_the_budget_is_filled(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path, budget: int
) -> None:
    """Within 2,000 bytes, by three solves at most, wherever the first landed."""
    out = tmp_path / "run"
    changes = ["--pack.budget-bytes", str(budget), "--from", mini_run.path, "--out", out]
    cli.output(*tiny, *changes)
    size = read_results(out)["bytes"]
    assert size["total"] == sum(
        (out / name).stat().st_size for name in ("model.bin", "train_gpt.py")
    )
    assert budget - 2_000 < size["total"] <= budget
    assert sum(event["event"] == "packed" for event in events(out)) <= 3


@pytest.mark.parametrize("split", ["measured", "uniform"])
def test_a_budget_that_is_not_to_be_filled(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path, split: str
) -> None:
    """The file takes what the configured bin widths take, divided over the matrices if balanced."""
    out = tmp_path / "run"
    changes = ["--pack.fill-budget", "False", "--pack.split", split, "--from", mini_run.path]
    cli.output(*tiny, *changes, "--out", out)
    solves = [event for event in events(out) if event["event"] == "packed"]
    given = {name: 0.1575 if name == "embedding" else 0.4145 for name in solves[0]["bin_widths"]}
    assert solves[0]["bin_widths"] == given
    reports = json.loads((out / "quantization.json").read_text())
    size = read_results(out)["bytes"]["model"]
    if split == "uniform":
        assert len(solves) == 1
        assert {name: report["bin_width"] for name, report in reports.items()} == given
        assert size == solves[0]["model_bytes"]
    else:
        assert len(solves) > 1
        assert solves[0]["model_bytes"] - 2_000 < size <= solves[0]["model_bytes"]


def test_a_budget_too_large_to_fill(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    changes = ["--pack.budget-bytes", "200000", "--from", mini_run.path, "--out", out]
    stdout = cli.output(*tiny, *changes)
    assert "bytes of the budget are left: all bins are at their narrowest" in stdout
    reports = json.loads((out / "quantization.json").read_text())
    assert {report["bin_width"] for report in reports.values()} == {0.02}


def test_out_is_not_empty(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    message = cli.error(*tiny, "--out", tmp_path)
    assert f"{tmp_path} is not empty" in message
    assert "--out" in message
    assert content(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize("out", ["mine.txt", "mine.txt/below"])
def test_out_is_no_folder(cli: Cli, tiny: list[str], tmp_path: Path, out: str) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "mine.txt" in cli.error(*tiny, "--out", tmp_path / out)
    assert content(tmp_path) == {"mine.txt": b"mine"}


def test_an_empty_folder_is_a_place_for_a_run(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    message = cli.error(*tiny, "--data.source", "nowhere", "--out", tmp_path)
    assert "nowhere" in message


def test_only_one_process_works_on_a_run(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = command.start(*tiny, "--train.max-steps", "100000", "--out", out)
    try:
        command.wait_until(lambda: "train" in stages_started(out), first)
        message = cli.error("run", "--resume", out)
        assert f"{out} is in use" in message
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    # The lock went with its process.
    second = command.start("run", "--resume", out)
    try:
        command.wait_until(lambda: stages_started(out).count("train") > 1, second)
    finally:
        second.kill()
        second.communicate()


def test_unusable_text(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (tmp_path / "text" / "val.jsonl").write_text("{}")
    message = cli.error(*tiny, "--data.source", "text", "--out", "run", cwd=tmp_path)
    assert "train.jsonl, line 2" in message


def test_text_without_adaptation_split(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    message = cli.error(*tiny, "--data.val-targets", "0", "--out", out, code=2)
    assert not out.exists()
    assert "--data.val-bytes" in message
    assert "--adapt.text none" in message


# Losses that are not finite.


@pytest.mark.parametrize("key", ["matrix-lr", "embedding-lr", "vector-lr"])
def test_training_that_diverges(cli: Cli, tiny: list[str], tmp_path: Path, key: str) -> None:
    """The kept checkpoint was written before the step that diverged."""
    out = tmp_path / "run"
    wild = [f"--train.{key}", "1e10", "--train.checkpoint-seconds", "0.001"]
    message = cli.error(*tiny, *wild, "--out", out)
    assert re.search(r"(at|in|after) step \d+", message)
    assert "lower --train.matrix-lr" in message
    checkpoint = out / "checkpoints" / "training.safetensors"
    assert f"the last good checkpoint is kept in {checkpoint}" in message
    tensors = load_file(checkpoint)
    assert [name for name, tensor in tensors.items() if not tensor.isfinite().all()] == []
    assert not (out / "checkpoints" / "ema.safetensors").exists()
    assert "has not finished the stage 'train'" in cli.error(
        *tiny, *wild, "--from", out, "--out", tmp_path / "second"
    )
    assert not (tmp_path / "second").exists()


def test_training_that_diverges_without_checkpoint(
    cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    wild = ["--train.matrix-lr", "1e30", "--train.checkpoint-seconds", "0"]
    message = cli.error(*tiny, *wild, "--out", tmp_path / "run")
    assert "training loss is nan at step 2;" in message
    assert "there is no checkpoint" in message
    assert "lower --train.matrix-lr" in message
    last = events(tmp_path / "run")[-1]
    assert (last["event"], last["step"], last["loss"]) == ("loss_not_finite", 2, "nan")


@pytest.mark.parametrize("adapt", ["none", "adapt"])
def test_training_that_diverges_in_its_last_step(
    cli: Cli, tiny: list[str], tmp_path: Path, adapt: str
) -> None:
    """All losses are finite but the weights are not: training has failed."""
    out = tmp_path / "run"
    wild = ["--train.embedding-lr", "1e5", "--adapt.text", adapt]
    message = cli.error(*tiny, *wild, "--out", out)
    assert "--train.embedding-lr" in message
    assert not (out / "stages" / "train.json").exists()


def test_adaptation_that_diverges(
    cli: Cli, mini_run: FinishedRun, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    message = cli.error(*tiny, "--adapt.lr", "1e30", "--from", mini_run.path, "--out", out)
    assert "in epoch 1 of adaptation" in message
    assert "lower --adapt.lr" in message
    ema = Path("checkpoints", "ema.safetensors")
    assert (out / ema).read_bytes() == (mini_run.path / ema).read_bytes()
    assert not (out / "checkpoints" / "adapted.safetensors").exists()
