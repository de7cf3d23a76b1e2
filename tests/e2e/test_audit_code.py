"""The code that counts is the code that scores: cheats in code file, package and both."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paramgolf.data.prepared import PreparedText
from paramgolf.runtime.files import read_json, write_json
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify import scored_again
from paramgolf.verify.scored_again import CodeFile, CodeFileError, Losses
from tests.e2e import cheats
from tests.e2e.command import Cli, Result
from tests.e2e.conftest import FinishedRun
from tests.e2e.test_audit import FAST, checks_of, failed


def audited(cli: Cli, run: Path, patch: str = "") -> Result:
    return cli("audit", run, "--device", "cpu", "--positions", "1", patch=FAST + patch)


def planted(run: Path, cheat: str, extra_bytes: int = 0) -> Path:
    """Give a run a code file that cheats, and report its scores; return the code file."""
    opened, _, config = RunDir.open(run)
    opened.code.write_bytes(cheats.code_file(config, cheat))
    cheats.report_its_scores(run, extra_bytes)
    return opened.code


class Scorer:
    """A run whose code file scores the text, whatever it is."""

    def __init__(self, run: Path) -> None:
        self.run, _, _ = RunDir.open(run)
        self.code = CodeFile(self.run, "cpu", 1)
        self.stream = PreparedText.of(self.run).stream("val", self.run.data)

    def losses(self, content: bytes, max_seconds: float = 100) -> Losses:
        self.code._files[self.run.code.name] = content
        return self.code.losses(self.stream, 0, fixed=True, max_seconds=max_seconds)


@pytest.fixture(scope="module")
def scorer(mini_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    run = Path(shutil.copytree(mini_run.path, tmp_path_factory.mktemp("scorer") / "run"))
    scorer = Scorer(run)
    with scorer.code:
        yield scorer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cheat", "condition"),
    [
        (cheats.FUTURE_EMBEDDING, "1 causal"),
        (cheats.BOOSTED_LOGIT, "2 normalised"),
        (cheats.SUM_OVER_ONE, "2 normalised"),
        (cheats.LEARNED_FIRST, "3 score before update"),
        (cheats.BETTER_OF_TWO, "4 one pass"),
        (cheats.MISCOUNTED_SPACE, "bytes"),
    ],
)
def test_a_scorer_that_cheats_is_caught_even_if_package_and_code_file_agree(
    cheat: str, condition: str, cli: Cli, score_first_run: Path, tmp_path: Path
) -> None:
    """The package is changed in the same way, and builds just this code file."""
    run = Path(shutil.copytree(score_first_run, tmp_path / "run"))
    code = planted(run, cheat, extra_bytes=cheat == cheats.MISCOUNTED_SPACE)
    result = audited(cli, run, cheat + cheats.recognised(code))
    assert result.code == 1, result.stdout
    assert condition in failed(run), result.stdout
    assert "code" not in failed(run)
    assert "NOT compliant" in result.stdout


def test_a_cheat_above_a_threshold_touches_few_losses(
    cli: Cli, run_copy: Path, scorer: Scorer
) -> None:
    """Five of 3,009 losses are lowered, in package and code file alike."""
    honest = (run_copy / "train_gpt.py").read_bytes()
    threshold = float(np.sort(scorer.losses(honest))[-6])
    cheat = cheats.ABOVE_A_THRESHOLD.format(threshold=threshold)
    code = planted(run_copy, cheat)
    result = audited(cli, run_copy, cheat + cheats.recognised(code))
    assert result.code == 1
    assert {"2 normalised", "4 one pass"} <= set(failed(run_copy))


def test_the_package_catches_a_code_file_that_cheats(cli: Cli, run_copy: Path) -> None:
    planted(run_copy, cheats.BOOSTED_LOGIT)
    result = audited(cli, run_copy)
    assert result.code == 1
    assert {"code", "2 normalised"} <= set(failed(run_copy))
    assert "read it, or audit with the version that built it" in " ".join(result.stdout.split())


def test_the_code_file_catches_a_package_that_cheats(cli: Cli, run_copy: Path) -> None:
    """The changed package reports its scores and audits itself."""
    for name in ("stages/score.json", "results.json"):
        (run_copy / name).unlink()
    assert cli("run", "--resume", run_copy, patch=cheats.BOOSTED_LOGIT).code == 0
    assert audited(cli, run_copy, cheats.BOOSTED_LOGIT).code == 1
    assert "4 one pass" in failed(run_copy)


@pytest.mark.slow
def test_a_code_file_that_knows_when_it_is_audited(cli: Cli, run_copy: Path) -> None:
    """It reports 0.01 nats less than it computes for the audit."""
    code = planted(run_copy, cheats.UNLESS_AUDITED)
    shards = PreparedText.of(RunDir(run_copy)).shards("val", run_copy / "data")
    command = [sys.executable, "-I", code, "score", "--device", "cpu", "--stride", "0", "--text"]
    said = subprocess.run([*command, *shards], capture_output=True, text=True, check=True).stdout
    bpb = float(re.findall(r"bpb +(\S+)", said)[0])
    results = read_json(run_copy / "results.json")
    assert bpb < results["stages"]["quantized"]["bpb"] - 0.001
    results["stages"]["quantized"]["bpb"] = bpb
    write_json(run_copy / "results.json", results)
    assert audited(cli, run_copy, cheats.recognised(code)).code == 1
    assert "4 one pass" in failed(run_copy)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it wrote no losses"),
        (b"\n", "it wrote no losses"),
        (b"print('hello')", "it wrote no losses"),
        (b"not a program", "SyntaxError: invalid syntax"),
        (b"import numpy\nnumpy.save('losses.npy', numpy.zeros(7))", "other losses than 3,009"),
        (b"import os\nos.kill(os.getppid(), 9)", "its process ended"),
        (b"import os\nos.mkfifo('losses.npy')", "it wrote no losses"),
        (b"import os\nos.symlink('/dev/zero', 'losses.npy')", "it wrote no losses"),
        (
            b"import numpy as n\nn.lib.format.open_memmap('losses.npy', 'w+', '<f8', (1 << 28,))",
            "other losses than 3,009",
        ),
        (
            b"import os\nos.remove('errors'); os.symlink('/dev/zero', 'errors'); exit(7)",
            "it ended with 7",
        ),
        (b"import os\nos.truncate('errors', 4 << 30); raise SystemExit('why')", "it ended with 1"),
        (b"open('other', 'wb').truncate(5 << 30)", "File too large"),
    ],
)
def test_a_code_file_that_does_not_score(content: bytes, why: str, scorer: Scorer) -> None:
    with pytest.raises(CodeFileError, match=re.escape(why)):
        scorer.losses(content)


def test_the_audit_of_an_empty_code_file_goes_on(cli: Cli, run_copy: Path) -> None:
    (run_copy / "train_gpt.py").write_bytes(b"")
    result = audited(cli, run_copy)
    assert result.code == 1
    assert result.stderr.count("\n") == 1
    assert {"bytes", "code"} <= set(failed(run_copy))
    outcomes = {check["name"]: check["outcome"] for check in checks_of(run_copy)}
    assert outcomes["code file scores the model"] == "FAIL"
    assert outcomes["score recomputed: sliding"] == "pass"
    assert outcomes["causal logits"] == "pass"
    (check,) = (c for c in checks_of(run_copy) if c["name"] == "code file scores the model")
    assert check["figure"] == "train_gpt.py does not score model.bin: it wrote no losses"


def test_a_code_file_of_another_version_is_not_verified(cli: Cli, run_copy: Path) -> None:
    """It is one byte longer, and scores like ours."""
    code = run_copy / "train_gpt.py"
    code.write_bytes(code.read_bytes() + b"#")
    cheats.report_its_size(run_copy)
    result = audited(cli, run_copy)
    assert result.code == 1
    assert failed(run_copy) == ["code"]
    words = " ".join(result.stdout.split())
    assert "verdict compliance not verified: the code file was not recognised" in words


@pytest.mark.parametrize("module", ["paramgolf.cli.main", "paramgolf.verify.audit"])
def test_the_installed_package_is_out_of_reach(module: str, scorer: Scorer) -> None:
    with pytest.raises(CodeFileError, match="paramgolf is not in the code file"):
        scorer.losses(f"import {module}; {module}.main()".encode())


def test_what_a_code_file_finds(scorer: Scorer, tmp_path: Path) -> None:
    """Its folder holds five files, and neither its path nor its environment names another."""
    told = tmp_path / "told.json"
    code = f"""
import json, os, sys
json.dump([sorted(os.listdir()), sys.path, dict(os.environ)], open({str(told)!r}, 'w'))
"""
    with pytest.raises(CodeFileError):
        scorer.losses(code.encode())
    files, path, environment = json.loads(told.read_text())
    assert files == ["errors", "model.bin", "text.bin", "tokenizer.model", "train_gpt.py"]
    assert not any("paramgolf" in folder for folder in path)
    assert not any(name.startswith("PYTHON") for name in environment)


def test_a_code_file_that_hangs_is_stopped(scorer: Scorer) -> None:
    with pytest.raises(CodeFileError, match="did not end within 2 s"):
        scorer.losses(b"import time\ntime.sleep(1000)", max_seconds=2)


def test_seconds_that_the_run_says_of_itself_are_no_limit(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored_again, "_MAX_SECONDS", 2)
    with pytest.raises(CodeFileError, match="did not end within 2 s"):
        scorer.losses(b"import time\ntime.sleep(1000)", max_seconds=10**12)


def test_a_code_file_that_replaces_itself(cli: Cli, run_copy: Path) -> None:
    """What the audit judges is what was there before it ran anything."""
    code = RunDir.open(run_copy)[0].code
    honest = run_copy.parent / "honest.py"
    shutil.copyfile(code, honest)
    program = (
        f"import shutil; shutil.copyfile({str(honest)!r}, {str(code)!r})\nraise SystemExit(1)\n"
    )
    code.write_text(program)
    assert audited(cli, run_copy).code == 1
    assert code.read_bytes() == honest.read_bytes()
    outcomes = {check["name"]: check["outcome"] for check in checks_of(run_copy)}
    assert outcomes["code file recognised"] == "FAIL"
    assert outcomes["files stay as they are"] == "FAIL"


def test_a_code_file_that_is_a_pipe(cli: Cli, run_copy: Path) -> None:
    code = RunDir.open(run_copy)[0].code
    code.unlink()
    os.mkfifo(code)
    result = audited(cli, run_copy)
    assert result.code == 1
    assert "train_gpt.py cannot be read" in " ".join(result.stdout.split())
