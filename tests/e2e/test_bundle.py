"""The folder that stands alone, used where there is no paramgolf."""

from __future__ import annotations

import ast
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paramgolf.compress.artifact import read
from tests.e2e.command import ENVIRONMENT, TIMEOUT, Cli, one_line_error
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import MINI, read_results


def python(libraries: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a folder, isolated: no site, no environment, nothing of this repository."""
    start = f"import sys; sys.path.append({str(libraries)!r}); "
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code],
        cwd=folder, env={"OMP_NUM_THREADS": "1", "PATH": ENVIRONMENT["PATH"]},
        capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip


def train_gpt(libraries: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = ["train_gpt.py", *arguments]
    code = f"import runpy; sys.argv = {argv!r}; runpy.run_path('train_gpt.py', run_name='__main__')"
    return python(libraries, folder, code)


@pytest.fixture(scope="module")
def bundled(cli: Cli, mini_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "bundle"
    result = cli("bundle", mini_run.path, "--out", folder)
    assert (result.code, result.stderr) == (0, "")
    total = read_results(mini_run.path)["bytes"]["total"]
    assert f"{total:,}  bytes of train_gpt.py and model.bin count" in result.stdout
    return folder


def test_the_folder_counts_what_the_results_say(bundled: Path, mini_run: FinishedRun) -> None:
    sizes = {path.name: path.stat().st_size for path in bundled.iterdir()}
    assert sizes.keys() == {
        "model.bin", "train_gpt.py", "tokenizer.model", "provenance.safetensors",
        "environment.json",
        "requirements.txt", "results.json",
    }  # fmt: skip
    size = read_results(mini_run.path)["bytes"]
    assert sizes["model.bin"] + sizes["train_gpt.py"] == size["total"] <= size["budget"]
    assert (sizes["model.bin"], sizes["train_gpt.py"]) == (size["model"], size["code"])
    assert size["budget"] == MINI["pack"]["budget_bytes"]
    for line in (bundled / "requirements.txt").read_text().splitlines():
        assert line.count("==") == 1
    ast.parse((bundled / "train_gpt.py").read_bytes())


def test_it_scores_to_the_last_digit(bundled: Path, libraries: Path, mini_run: FinishedRun) -> None:
    missing = python(libraries, bundled, "import paramgolf")
    assert "No module named 'paramgolf'" in missing.stderr
    shards = [str(path) for path in sorted((mini_run.path / "data").glob("text_val_*.bin"))]
    expected = read_results(mini_run.path)["stages"]
    for stage, options in (("sliding", []), ("quantized", ["--stride", "0"])):
        result = train_gpt(libraries, bundled, "score", "--text", *shards, *options)
        assert (result.returncode, result.stderr) == (0, "")
        words = result.stdout.split()
        for key in ("bpb", "loss_nats", "tokens", "bytes", "label"):
            assert words[words.index(key) + 1] == str(expected[stage][key])


@pytest.mark.parametrize("form", ["shards", "documents"])
def test_it_reproduces_the_artifact(
    bundled: Path, libraries: Path, mini_run: FinishedRun, source: Path, tmp_path: Path, form: str
) -> None:
    """From the run's own shards, and from the documents that it read."""
    folder = Path(shutil.copytree(bundled, tmp_path / "bundle"))
    data = mini_run.path / "data" if form == "shards" else source
    shutil.copytree(data, folder / "data")
    result = train_gpt(libraries, folder, "run", "--source", "data", "--out", "again")
    assert (result.returncode, result.stderr) == (0, "")
    again = folder / "again"
    for name in ("model.bin", "train_gpt.py", "provenance.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    ours, theirs = read_results(again), read_results(mini_run.path)
    if form == "shards":  # which do not say what they were made of
        for score in theirs["stages"].values():
            score["bytes_are"] = "as decoded"
    assert (ours["stages"], ours["bytes"]) == (theirs["stages"], theirs["bytes"])
    printed, size = result.stdout.splitlines()[-4:-1], ours["bytes"]
    for line, (stage, score) in zip(printed, list(ours["stages"].items())[-2:], strict=False):
        numbers = f"{score['bpb']:.6f} {score['tokens']:,} {score['bytes']:,}"
        label = score["label"] + "," * (form == "shards")
        assert line.split()[:5] == [stage, *numbers.split(), label]
    assert printed[-1].split()[1:4] == [f"{size['total']:,}", "of", f"{size['budget']:,}:"]
    digest = theirs["artifact_sha256"]
    assert result.stdout.splitlines()[-1] == f"reproduced: yes (same artifact, SHA-256 {digest})"


@pytest.mark.slow
def test_another_artifact_is_compared_by_its_score(
    bundled: Path, libraries: Path, mini_run: FinishedRun, tmp_path: Path
) -> None:
    """A tokenizer of unknown origin counts in the budget, which leaves less for the weights."""
    folder = Path(shutil.copytree(bundled, tmp_path / "bundle"))
    shutil.copy(folder / "tokenizer.model", tmp_path)
    run = ("run", "--source", str(mini_run.path / "data"), "--out")
    tokenizer = ("--tokenizer", str(tmp_path / "tokenizer.model"))

    def last_line(*arguments: str) -> str:
        result = train_gpt(libraries, folder, *arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.splitlines()[-1]

    said = last_line(*run, "again", *tokenizer)
    results = read_results(folder)
    score, ours = results["stages"]["sliding"], read_results(folder / "again")
    size = ours["bytes"]
    assert size["total"] == size["model"] + size["code"] + size["tokenizer"] <= size["budget"]
    bpb = ours["stages"]["sliding"]["bpb"]
    assert said == (
        f"reproduced: yes ({bpb:.4f} BPB, {score['bpb']:.4f} recorded, tolerance 0.02; "
        "another artifact, as with other hardware, threads or libraries)"
    )
    for key, value, words in (
        ("bpb", score["bpb"] + 0.03, f"no ({bpb:.4f} BPB, {score['bpb'] + 0.03:.4f} "),
        ("tokens", 1, "no (another text was scored)"),
    ):
        score[key] = value
        (folder / "results.json").write_text(json.dumps(results))
        assert f"reproduced: {words}" in last_line("run", "--resume", "again")


def test_it_reads_texts_by_their_content(bundled: Path, libraries: Path, tmp_path: Path) -> None:
    """As the installed `paramgolf score` does, whatever the name of a file."""
    folder = Path(shutil.copytree(bundled, tmp_path / "bundle"))
    documents = ["one document", "and another"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    for name, content in {
        "lines.txt": lines.encode(), "x.jsonl": lines.encode(), "x": gzip.compress(lines.encode()),
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
        result = train_gpt(libraries, folder, "score", "--text", name)
        assert result.returncode == 0, result.stderr
        assert f"\n  bytes           {sum(map(len, documents))}\n" in result.stdout


def test_it_says_what_is_wrong_in_one_line(bundled: Path, libraries: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled, tmp_path / "bundle"))
    (folder / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:-5])
    (folder / "text.txt").write_text("some text")
    result = train_gpt(libraries, folder, "score", "--text", "text.txt")
    assert result.returncode == 1
    assert "model.bin is truncated or damaged" in result.stderr
    assert result.stderr.count("\n") == 1
    result = train_gpt(libraries, folder, "run")
    assert result.returncode == 2
    assert "--source" in result.stderr


def test_its_messages_name_its_own_options(
    bundled: Path, libraries: Path, mini_run: FinishedRun, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundled, tmp_path / "bundle"))
    run = ("run", "--source", str(mini_run.path / "data"))
    exists = train_gpt(libraries, folder, *run, "--out", ".")
    assert exists.returncode == 1
    assert "with `python train_gpt.py run --resume .`" in exists.stderr
    nothing = train_gpt(libraries, folder, "run", "--resume", ".")
    assert nothing.stderr.endswith("; start one: python train_gpt.py run\n")
    (folder / "tokenizer.model").unlink()
    missing = train_gpt(libraries, folder, *run)
    assert missing.returncode == 2
    assert missing.stderr.endswith("tokenizer.model does not exist: name it with --tokenizer\n")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []


def test_a_bundle_needs_a_finished_run_and_a_new_folder(
    cli: Cli, mini_run: FinishedRun, bundled: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(mini_run.path, tmp_path / "run"))
    (run / "stages" / "pack.json").unlink()
    assert "not packed yet" in cli.error("bundle", run, "--out", tmp_path / "new")
    assert "not empty" in cli.error("bundle", mini_run.path, "--out", bundled)
    assert "contains no run" in cli.error("bundle", tmp_path, "--out", tmp_path / "new")


def test_export(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    result = cli("export", mini_run.path / "model.bin", "--out", out)
    assert (result.code, result.stderr) == (0, "")
    weights, expected = load_file(out / "model.safetensors"), read(mini_run.path / "model.bin")
    assert weights.keys() == expected.state().keys()
    assert all(torch.equal(weights[name], w) for name, w in expected.state().items())
    assert json.loads((out / "config.json").read_text())["model"]["width"] == 32
    again = cli("export", mini_run.path / "model.bin", "--out", out)
    assert "not empty" in one_line_error(again)
