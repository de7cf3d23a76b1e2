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

from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import select_runtime
from paramgolf.verify.audit import audit
from tests.e2e import cheats, command
from tests.e2e.command import Result
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import mini_options


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
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
    words = " ".join(result.stdout.split())
    assert "compliant as score-first adaptive predictor" in words
    assert "FAIL" not in words
    assert "self-reported: 6 steps of 512 tokens" in words
    assert "1 causal, 2 normalised, 3 score before update, 4 one pass: see docs/rules.md" in words
    assert max(map(len, result.stdout.splitlines())) <= 80
    rules = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    for check in json.loads((legal / "audit.json").read_text())["checks"]:
        assert check["name"].split(":")[0] in rules
        assert f"| {check['condition']} |" in rules
    stages = json.loads((legal / "results.json").read_text())["stages"]
    assert stages["score_first"]["label"] == "score-first"
    assert stages["score_first"]["bpb"] < stages["sliding"]["bpb"]


class Progress:
    """In place of the progress of a console: all updates."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, str]] = []

    def update(self, done: float, total: float | None = None, details: str = "") -> None:
        self.updates.append((done, details))


def test_its_progress_covers_all_of_its_parts(
    mini_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    reporter, progress = Reporter(), Progress()
    monkeypatch.setattr(reporter, "progress", lambda *_: progress)
    assert audit(run, 2, select_runtime("cpu"), reporter).passed
    percents = [percent for percent, _ in progress.updates]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == pytest.approx((0, 100), abs=0.1)
    assert len(percents) > 10
    assert list(dict.fromkeys(details for _, details in progress.updates)) == [
        "scoring again quantized (1 of 5)", "scoring again sliding (2 of 5)",
        "other tokens quantized (3 of 5)", "other tokens sliding (4 of 5)", "vocabulary (5 of 5)",
    ]  # fmt: skip
    assert not (run / "report.html").exists()


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
