"""The audit passes honest runs and catches each cheat under the condition that it violates."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from tests.e2e import cheats, command
from tests.e2e.command import Result
from tests.e2e.mini import mini_options


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def failed(run: Path) -> list[str]:
    """Return the violated conditions according to audit.json."""
    return json.loads((run / "audit.json").read_text())["failed"]


def audited(run: Path, **environment: str) -> Result:
    """Audit a run in a fresh process."""
    return command.run("audit", run, "--device", "cpu", "--positions", "2", env=environment)


@pytest.fixture(scope="module")
def legal(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that learns while it scores; do not write to its folder."""
    path = tmp_path_factory.mktemp("legal") / "run"
    result = command.run(
        "run", "legal", *options, "--score-first.chunk-tokens", "512", "--out", path
    )
    assert result.code == 0, result.stderr
    return path


def test_an_honest_run_passes(legal: Path) -> None:
    result = audited(legal)
    assert result.code == 0, result.stdout + result.stderr
    assert "compliant as score-first adaptive predictor" in result.stdout
    assert "FAIL" not in result.stdout
    assert "provenance is self-reported" in result.stdout
    assert "1 causal, 2 normalised, 3 score before update, 4 one pass: see docs/rules.md" in (
        result.stdout
    )
    stages = json.loads((legal / "results.json").read_text())["stages"]
    assert stages["score_first"]["label"] == "score-first"
    assert stages["score_first"]["bpb"] < stages["sliding"]["bpb"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cheat", "condition"),
    [
        ("FUTURE_EMBEDDING", "1 causal"),
        ("BOOSTED_LOGIT", "2 normalised"),
        ("SUM_OVER_ONE", "2 normalised"),
        ("LEARNED_FIRST", "3 score before update"),
        ("BETTER_OF_TWO", "4 one pass"),
        ("MISCOUNTED_SPACE", "bytes"),
    ],
)
def test_a_scorer_that_cheats_is_caught(
    cheat: str, condition: str, legal: Path, tmp_path: Path
) -> None:
    """It scores the honest artifact again and reports its scores, which are then audited."""
    run, patches = tmp_path / "run", tmp_path / "patches"
    shutil.copytree(legal, run)
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(getattr(cheats, cheat))
    for name in ("stages/score.json", "results.json"):
        (run / name).unlink()
    path = os.pathsep.join([str(patches), os.environ.get("PYTHONPATH", "")])
    result = command.run("run", "--resume", run, env={"PYTHONPATH": path})
    assert result.code == 0, result.stderr
    result = audited(run, PYTHONPATH=path)
    assert result.code == 1, result.stdout
    assert condition in failed(run), result.stdout
    assert "NOT compliant" in result.stdout


def hide_hessians(values: dict[str, Any]) -> None:
    del values["seconds"]["pack: Hessians"]


@pytest.mark.slow
def test_files_and_records_that_do_not_match(legal: Path, tmp_path: Path) -> None:
    over, hidden, damped = (tmp_path / name for name in ("over", "hidden", "damped"))
    shutil.copytree(legal, over)
    total = json.loads((over / "results.json").read_text())["bytes"]["total"]
    edit(over / "config.json", lambda values: values["pack"].update(budget_bytes=total - 1))
    assert audited(over).code == 1
    assert failed(over) == ["bytes"]
    shutil.copytree(legal, hidden)
    for name in ("stages/pack.json", "results.json"):
        edit(hidden / name, hide_hessians)
    assert audited(hidden).code == 1
    assert failed(hidden) == ["seconds"]
    shutil.copytree(legal, damped)
    edit(damped / "quantization.json", lambda values: values["embedding"].update(damping=0.1))
    result = audited(damped)
    assert result.code == 1
    assert failed(damped) == ["ledger"]
    assert "does not match quantization.json: embedding" in result.stdout


@pytest.mark.slow
def test_the_procedure_of_the_reference_is_in_sample(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = command.run("run", "tiny", *options, "--adapt.text", "scored", "--out", run)
    assert result.code == 0, result.stderr
    result = audited(run)
    assert result.code == 1
    assert failed(run) == ["provenance"]
    assert "in-sample" in result.stdout
    assert "1 (causal) and 3 (score before update)" in result.stdout


@pytest.mark.slow
def test_one_scored_document_in_a_hundred_was_trained_on(tmp_path: Path) -> None:
    """Only its spaces were changed."""
    paragraphs = {part.strip() for text in topics.values() for part in text.split("\n\n")}
    documents = sorted(part for part in paragraphs if len(part.split()) > 40)
    val, train = documents[:200], documents[200:]
    train += [text.replace(" ", "  \n") for text in val[50:52]]
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
    assert "2 of 200 documents seen" in result.stdout


def test_its_score_is_proven_by_decoding(legal: Path) -> None:
    result = command.run("prove", legal, "--mode", "score-first", "--bytes", "2500")
    assert result.code == 0, result.stdout + result.stderr
    assert "(score-first), score-first windows" in result.stdout
