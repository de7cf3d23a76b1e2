"""The audit passes honest runs and catches each cheat under the condition that it violates."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from paramgolf.compress.artifact import decode, encode
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.files import read_json, read_tensors, write_tensors
from paramgolf.verify.audit import audit
from tests.e2e import command
from tests.e2e.command import Cli, Result
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import mini_options


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


FAST = "from paramgolf.verify import measured; measured._SECONDS = 0\n"
"""A patch: the speed of training is measured in three steps."""


def failed(run: Path) -> list[str]:
    """Return the violated conditions according to audit.json."""
    return json.loads((run / "audit.json").read_text())["failed"]


def checks_of(run: Path) -> list[dict[str, Any]]:
    """Return the checks of audit.json."""
    return json.loads((run / "audit.json").read_text())["checks"]


def audited(run: Path, **environment: str) -> Result:
    """Audit a run in a fresh process."""
    return command.run("audit", run, "--device", "cpu", "--positions", "2", env=environment)


def test_an_honest_run_passes(score_first_run: Path) -> None:
    result = audited(score_first_run)
    assert result.code == 0, result.stdout + result.stderr
    words = " ".join(result.stdout.split())
    assert "compliant as score-first adaptive predictor within 88,000 bytes, " in words
    assert "unlimited evaluation time (recipe tiny-score-first has " in words
    assert "origin self-reported" not in words
    assert "FAIL" not in words
    assert "self-reported: 6 steps of 512 tokens" in words
    assert "score verified: score_first" in words
    assert "1 causal, 2 normalised, 3 score before update, 4 one pass: see docs/rules.md" in words
    assert max(map(len, result.stdout.splitlines())) <= 80
    rules = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    for check in json.loads((score_first_run / "audit.json").read_text())["checks"]:
        assert check["name"].split(":")[0] in rules
        assert f"| {check['condition']} |" in rules
        assert f" {check['kind']} {check['name']} " in words
    stages = json.loads((score_first_run / "results.json").read_text())["stages"]
    assert stages["score_first"]["label"] == "score-first"
    assert stages["score_first"]["bpb"] < stages["sliding"]["bpb"]


class Progress:
    """In place of the progress of a console: all updates."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, str]] = []

    def update(self, done: float, total: float | None = None, details: str = "") -> None:
        self.updates.append((done, details))


@pytest.mark.slow
def test_its_progress_covers_all_of_its_parts(
    mini_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    reporter, progress = Reporter(), Progress()
    monkeypatch.setattr(reporter, "progress", lambda *_: progress)
    assert audit(run, 2, 1, select_runtime("cpu"), reporter).passed
    percents = [percent for percent, _ in progress.updates]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == pytest.approx((0, 100), abs=0.1)
    assert len(percents) > 10
    assert list(dict.fromkeys(details for _, details in progress.updates)) == [
        "scoring again quantized (1 of 7)", "scoring again sliding (2 of 7)",
        "every loss quantized (3 of 7)", "every loss sliding (4 of 7)",
        "other tokens quantized (5 of 7)", "other tokens sliding (6 of 7)", "vocabulary (7 of 7)",
    ]  # fmt: skip
    assert not (run / "audit.json").exists()  # the command writes it, after the verdict


@pytest.mark.slow
def test_the_procedure_of_the_reference_is_in_sample(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = command.run("run", "tiny", *options, "--adapt.text", "scored", "--out", run)
    assert result.code == 0, result.stderr
    result = audited(run)
    assert result.code == 1
    assert failed(run) == ["provenance"]
    assert "in-sample" in result.stdout
    assert "1 (causal) and 3 (score before update)" in " ".join(result.stdout.split())


@pytest.mark.slow
def test_one_scored_document_in_twenty_was_trained_on(tmp_path: Path) -> None:
    """Every twelfth word was left out, and the rest is in another case and full of joiners."""
    paragraphs = {part.strip() for text in topics.values() for part in text.split("\n\n")}
    documents = sorted(part for part in paragraphs if len(part.split()) > 40)
    val, train = documents[:200], documents[200:]
    for text in val[50:60]:
        words = [word for i, word in enumerate(text.upper().split()) if i % 12 != 5]
        train.append("\u200d ".join(words))
    for split, texts in (("train", train), ("val", val)):
        lines = [json.dumps({"text": text}) for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    run = tmp_path / "run"
    options = mini_options(tmp_path)
    options += ["--data.val-targets", "0", "--adapt.text", "none", "--out", str(run)]
    result = command.run("run", "tiny", *options)
    assert result.code == 0, result.stderr
    result = audited(run)
    assert result.code == 1
    assert failed(run) == ["provenance"], result.stdout
    (seen,) = re.findall(r"(\d+) of 200 documents seen", " ".join(result.stdout.split()))
    assert 5 < int(seen) < 15


def test_its_score_is_proven_by_decoding(score_first_run: Path) -> None:
    result = command.run("prove", score_first_run, "--mode", "score-first", "--bytes", "1200")
    assert result.code == 0, result.stdout + result.stderr
    assert "proven: score_first" in result.stdout


@pytest.mark.slow
def test_its_positions_are_random_and_can_be_repeated(cli: Cli, run_copy: Path) -> None:
    def figures(*options: str) -> list[str]:
        said = cli("audit", run_copy, "--positions", "1", *options, patch=FAST).stdout
        assert f"\nseed           {read_json(run_copy / 'audit.json')['seed']}\n" in said
        names = ("causal losses: sliding", "one window per target: sliding")
        return [check["figure"] for check in checks_of(run_copy) if check["name"] in names]

    first = figures()
    seed = read_json(run_copy / "audit.json")["seed"]
    other = figures()
    assert read_json(run_copy / "audit.json")["seed"] != seed
    assert first != other
    assert figures("--seed", str(seed)) == first
    assert "--seed = -2" in cli.error("audit", run_copy, "--seed", "-2", code=2)


@pytest.mark.slow
def test_a_verdict_needs_no_writable_folder(cli: Cli, run_copy: Path) -> None:
    (run_copy / "audit.json").mkdir()  # root may write anything else
    result = cli("audit", run_copy, "--positions", "1", patch=FAST)
    assert (result.code, result.stderr) == (0, "")
    verdict, last = result.stdout.split("verdict  ")[1], result.stdout.splitlines()[-1]
    assert "score verified" in verdict
    assert last.startswith(f"not recorded: cannot write {run_copy / 'audit.json'}: ")


@pytest.mark.parametrize("share", [1e-9, 9e-5])
def test_a_score_is_compared_to_the_last_digit(share: float, cli: Cli, run_copy: Path) -> None:
    def lower(values: dict[str, Any]) -> None:
        values["stages"]["sliding"]["bpb"] -= share

    edit(run_copy / "results.json", lower)
    assert cli("audit", run_copy, "--positions", "1", patch=FAST).code == 1
    assert "4 one pass" in failed(run_copy)
    outcomes = {check["name"]: check["outcome"] for check in checks_of(run_copy)}
    assert outcomes["score recomputed: quantized"] == "pass"
    assert outcomes["score recomputed: sliding"] == "FAIL"


@pytest.mark.parametrize(("difference", "outcome"), [(0.0, "pass"), (1e-7, "pass"), (3e-5, "FAIL")])
def test_the_noise_of_another_machine_is_small(
    difference: float, outcome: str, cli: Cli, run_copy: Path
) -> None:
    def lower(values: dict[str, Any]) -> None:
        values["stages"]["sliding"]["bpb"] -= difference

    edit(run_copy / "environment.json", lambda values: values.update(cpu="another"))
    edit(run_copy / "results.json", lower)
    cli("audit", run_copy, "--positions", "1", patch=FAST)
    found = {check["name"]: check for check in checks_of(run_copy)}["score recomputed: sliding"]
    assert found["outcome"] == outcome
    limit = re.search(r"limit (\S+): the run names another cpu", found["figure"])
    assert limit is not None
    assert 1e-7 < float(limit[1]) <= 2e-5


def test_losses_of_documents_are_compared(cli: Cli, run_copy: Path) -> None:
    """Losses moved from one document to another leave the total as it is."""
    tensors, notes = read_tensors(run_copy / "documents.safetensors")
    tensors["sliding"][:2] += torch.tensor([1e-6, -1e-6], dtype=torch.float64)
    write_tensors(run_copy / "documents.safetensors", tensors, **notes)
    assert cli("audit", run_copy, "--positions", "1", patch=FAST).code == 1
    wrong = [check["name"] for check in checks_of(run_copy) if check["outcome"] == "FAIL"]
    assert wrong == ["documents recomputed: sliding"]


def test_losses_that_are_not_finite(cli: Cli, run_copy: Path) -> None:
    artifact = decode((run_copy / "model.bin").read_bytes())
    for vector in artifact.vectors.values():
        vector.fill_(3e38)
    (run_copy / "model.bin").write_bytes(encode(artifact)[0])
    (run_copy / "text.txt").write_text("a text")
    for arguments in (["score", run_copy, run_copy / "text.txt"], ["audit", run_copy],
                      ["prove", run_copy, "--text", run_copy / "text.txt"],
                      ["compress", run_copy, run_copy / "text.txt", "--out", "small"]):  # fmt: skip
        assert "the model's losses are not finite" in cli.error(*arguments)
