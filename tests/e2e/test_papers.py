"""Planted cheats in what is written about a run: its results, its audit, its submission."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paramgolf.compress import artifact
from paramgolf.data.documents import text_digest
from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import Provenance
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.files import read_tensors, sha256_of_file, write_json, write_tensors
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify.recomputed import recomputed
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import read_results

Scores = dict[str, dict[str, Any]]
Tensors = dict[str, torch.Tensor]

_CODED = ("--bytes", "3000")


def rewrite(run: Path, scores: Callable[[Scores], None], losses: Callable[[Tensors], None]) -> None:
    """Change the scores in results.json and the losses in documents.safetensors."""
    results = read_results(run)
    scores(results["stages"])
    write_json(run / "results.json", results)
    tensors, notes = read_tensors(run / "documents.safetensors")
    losses(tensors)
    write_tensors(run / "documents.safetensors", tensors, **notes)


def unchanged(_: Any) -> None:
    pass


def scaled(share: float) -> tuple[Callable[[Scores], None], Callable[[Tensors], None]]:
    """Return changes that make every packed score smaller, in both files alike."""

    def scores(stages: Scores) -> None:
        for name in ("quantized", "sliding"):
            stages[name]["bpb"] *= share
            stages[name]["loss_nats"] *= share

    def losses(tensors: Tensors) -> None:
        for name in ("quantized", "sliding"):
            tensors[name] *= share

    return scores, losses


def all_half(stages: Scores) -> None:
    for score in stages.values():
        score["bpb"] = 0.5


def over_more_bytes(stages: Scores) -> None:
    for score in stages.values():
        score["bytes"] *= 2
        score["bpb"] /= 2


def more_bytes(tensors: Tensors) -> None:
    tensors["bytes"] *= 2


def test_results_that_their_own_losses_contradict_are_not_proven(cli: Cli, run_copy: Path) -> None:
    rewrite(run_copy, all_half, unchanged)
    said = cli.error("prove", run_copy, *_CODED)
    assert "not proven: results.json of" in said
    assert "reports bpb 0.500000 for quantized, but its losses" in said


def test_bytes_that_the_text_does_not_have_are_not_proven(cli: Cli, run_copy: Path) -> None:
    rewrite(run_copy, over_more_bytes, unchanged)
    assert "bytes of text, its documents have" in cli.error("prove", run_copy, *_CODED)
    rewrite(run_copy, unchanged, more_bytes)
    assert "bytes of text, its documents have" in cli.error("prove", run_copy, *_CODED)


@pytest.mark.parametrize("share", [pytest.param(0.1, marks=pytest.mark.slow), 0.97])
def test_losses_that_no_stream_reaches_are_not_proven(
    cli: Cli, run_copy: Path, share: float
) -> None:
    """Also of a short text: 3 % of its stream are less than the 64 bytes once allowed."""
    rewrite(run_copy, *scaled(share))
    result = cli("prove", run_copy, *_CODED)
    assert result.code == 1
    assert "bit for bit, by another process" in result.stdout
    assert "verdict   not proven" in result.stdout
    assert " is not proven: the stream takes " in result.stderr
    assert "the reported losses of these documents claim " in result.stderr


def test_the_order_of_the_scores_says_nothing(cli: Cli, run_copy: Path) -> None:
    """The final score is that of the last stage, not the one that stands last."""
    results = read_results(run_copy)
    final = results["stages"]["sliding"]["bpb"]
    results["stages"]["ema"] = results["stages"].pop("ema") | {"bpb": 0.5}
    write_json(run_copy / "results.json", results)
    assert list(read_results(run_copy)["stages"])[-1] == "ema"
    listed = cli("list", run_copy).stdout
    assert f"{final:.4f}" in listed
    assert "0.5000" not in listed


def test_originals_that_its_tokens_do_not_restore_are_not_proven(cli: Cli, run_copy: Path) -> None:
    run, _, _ = RunDir.open(run_copy)
    scored = PreparedText.of(run).scored_text(run.data, Tokenizer.load(run.tokenizer))
    longer = [10 * text for text in scored.texts]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in longer)
    (run_copy / "data" / "originals_val.jsonl").write_text(lines)
    file = run_copy / "stages" / "prepare.json"
    values = json.loads(file.read_text())
    values["text"]["splits"]["val"]["text_sha256"] = text_digest(longer).hex()
    write_json(file, values)
    assert "does not come back from its tokens" in cli.error("prove", run_copy, *_CODED)


def test_a_model_of_another_shape_or_recipe(run_copy: Path) -> None:
    run, _, config = RunDir.open(run_copy)
    packed = artifact.read(run.artifact)
    model = dataclasses.replace(packed.model, logit_softcap=3.0)
    changed = dataclasses.replace(packed, stride=1, model=model)
    run.artifact.write_bytes(artifact.encode(changed)[0])
    checks = recomputed(run, config, read_results(run_copy))
    (found,) = (c for c in checks if c.name == "configuration is that of train_gpt.py")
    assert found.outcome == "FAIL"
    assert found.figure == "different: model in model.bin, score.stride in model.bin"


def test_a_recipe_is_a_printable_name(cli: Cli, run_copy: Path) -> None:
    values = json.loads((run_copy / "config.json").read_text())
    write_json(run_copy / "config.json", values | {"recipe": "tiny\x1b[2K\n9.99 forged"})
    assert "invalid recipe 'tiny" in cli.error("audit", run_copy)
    assert "forged" not in cli("list", run_copy).stdout


# What only a rerun can check.


@pytest.fixture(scope="module")
def rerun(cli: Cli, mini_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rerun of an honest run, in a directory that other verifications use again."""
    folder = tmp_path_factory.mktemp("verify")
    run = Path(shutil.copytree(mini_run.path, folder / "run"))
    result = cli("verify", run, "--out", folder / "again")
    assert result.code == 0, result.stdout + result.stderr
    assert "verdict   verified for seed 1337: the rerun made the same artifact\n" in result.stdout
    said = json.loads((run / "verify.json").read_text())
    assert (said["verified"], said["same_artifact"]) == (True, True)
    assert {fact["agrees"] for fact in said["facts"]} == {"yes", "not judged"}
    return folder / "again"


def claim_steps(results: dict[str, Any]) -> None:
    results["steps"] += 1


def claim_score(results: dict[str, Any]) -> None:
    results["stages"]["sliding"]["bpb"] -= 0.03


def claim_label(results: dict[str, Any]) -> None:
    results["stages"]["sliding"]["label"] = "score-first"


def claim_tokenizer(results: dict[str, Any]) -> None:
    results["tokenizer"]["claim"] = "known"


def claim_text(results: dict[str, Any]) -> None:
    results["text"]["sha256"] = "0" * 64


def claim_stage(results: dict[str, Any]) -> None:
    score = {**results["stages"]["sliding"], "bpb": 0.5}
    results["stages"]["score_first"] = score


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (claim_steps, "steps"),
        (claim_score, "BPB, sliding"),
        (claim_label, "BPB, sliding"),
        (claim_tokenizer, "tokenizer is"),
        (claim_text, "scored text"),
        (claim_stage, "BPB, score_first"),
    ],
)
def test_a_false_claim_is_not_verified(
    cli: Cli, run_copy: Path, rerun: Path, change: Callable[[dict[str, Any]], None], fact: str
) -> None:
    results = read_results(run_copy)
    change(results)
    write_json(run_copy / "results.json", results)
    result = cli("verify", run_copy, "--out", rerun)
    assert result.code == 1
    assert f"is not verified: {fact}" in result.stderr
    assert f"NOT verified: {fact}" in result.stdout
    assert json.loads((run_copy / "verify.json").read_text())["verified"] is False


def test_fewer_seconds_than_a_rerun_takes_are_not_verified(
    cli: Cli, run_copy: Path, rerun: Path, tmp_path: Path
) -> None:
    """Below a second, in which this run trains, they are noise: so the rerun takes a minute."""
    slow = Path(shutil.copytree(rerun, tmp_path / "slow"))
    stage = json.loads((slow / "stages" / "train.json").read_text())
    stage["seconds"]["train: steps"] += 60
    write_json(slow / "stages" / "train.json", stage)
    result = cli("verify", run_copy, "--out", slow)
    assert result.code == 1
    assert "is not verified: seconds, training" in result.stderr


def test_weights_from_elsewhere_are_not_verified(cli: Cli, run_copy: Path, rerun: Path) -> None:
    """The artifact is another one, and its score is far from the rerun's."""
    (run_copy / "model.bin").write_bytes((run_copy / "model.bin").read_bytes() + b" ")
    result = cli("verify", run_copy, "--out", rerun)
    assert "is not verified: artifact" in result.stderr
    results = read_results(run_copy)
    results["artifact_sha256"] = sha256_of_file(run_copy / "model.bin")
    for score in results["stages"].values():
        score["bpb"] -= 0.01
    write_json(run_copy / "results.json", results)
    result = cli("verify", run_copy, "--out", rerun)
    assert result.code == 0, result.stderr
    assert "within limits: the rerun made another artifact" in result.stdout


def test_a_forged_provenance_is_not_verified(cli: Cli, run_copy: Path, rerun: Path) -> None:
    known = Provenance.load(run_copy / "provenance.safetensors")
    forged = dataclasses.replace(known.texts["train"], sha256="0" * 64)
    texts = {**known.texts, "train": forged}
    dataclasses.replace(known, texts=texts).save(run_copy / "provenance.safetensors")
    result = cli("verify", run_copy, "--out", rerun)
    assert "is not verified: provenance: train" in result.stderr


def test_a_bundle_is_verified_from_its_own_configuration(
    cli: Cli, mini_run: FinishedRun, rerun: Path, source: Path, tmp_path: Path
) -> None:
    """Its code is read, not executed; its text has to be named."""
    bundle = tmp_path / "bundle"
    cli.output("bundle", mini_run.path, "--out", bundle)
    assert "name its folder by --source" in cli.error("verify", bundle, "--out", rerun)
    result = cli("verify", bundle, "--source", source, "--out", rerun)
    assert result.code == 0, result.stdout + result.stderr
    (bundle / "train_gpt.py").write_bytes(b"")
    said = cli.error("verify", bundle, "--source", source, "--out", rerun)
    assert "is no code file of paramgolf" in said


def test_the_verdict_is_printed_though_it_cannot_be_written(
    cli: Cli, run_copy: Path, rerun: Path
) -> None:
    (run_copy / "verify.json").mkdir()
    result = cli("verify", run_copy, "--out", rerun)
    assert result.code == 0
    assert "verdict   verified" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("warning: cannot write ")


def test_what_cannot_be_verified(cli: Cli, run_copy: Path, rerun: Path, tmp_path: Path) -> None:
    assert "it has no results.json and model.bin" in cli.error("verify", tmp_path)
    said = cli.error("verify", run_copy, "--out", run_copy, code=2)
    assert "is the run to verify" in said
    config = json.loads((run_copy / "config.json").read_text())
    write_json(run_copy / "config.json", {**config, "seed": 2})
    assert "contains another run" in cli.error("verify", run_copy, "--out", rerun)
