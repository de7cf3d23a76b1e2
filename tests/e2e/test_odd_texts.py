"""Texts with next to nothing in them, names that a terminal could misread, folders of texts."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from paramgolf.data.streams import encoded
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.device import select_runtime
from paramgolf.scoring.predictor import load
from paramgolf.scoring.text_coder import TextCoder
from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun
from tests.e2e.mini import mini_options, table_rows, texts_of
from tests.helpers import one_line

TEXTS = {
    "empty": "",
    "byte": "x",
    "token": " the",
    "line": "one line that does not end",
    "newlines": "\n\n\n",
    "spaces": "   ",
    "BOM": "\ufeff",
    "NUL": "\0",
}


def checked(cli: Cli, *arguments: str | Path) -> tuple[int, str]:
    """Run a command that may fail, but only as expected; return its exit code and output."""
    result = cli(*arguments)
    assert result.code in (0, 1, 2), result
    assert "unexpected" not in result.stderr, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    assert not re.search(r"\b(nan|inf)\b", result.stdout), result.stdout
    return result.code, result.stdout + result.stderr


@pytest.fixture(params=TEXTS)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with an odd text, alone in its folder."""
    path = tmp_path / "odd" / f"{request.param}.txt"
    path.parent.mkdir()
    path.write_bytes(TEXTS[request.param].encode())
    return path


def test_score(cli: Cli, mini_run: FinishedRun, odd: Path) -> None:
    jsonl = odd.with_suffix(".jsonl")
    jsonl.write_text(json.dumps({"text": odd.read_text()}) + "\n")
    for given in (odd, jsonl, odd.parent):
        code, said = checked(cli, "score", mini_run.path, given)
        if odd.stem == "empty" or (odd.stem == "BOM" and given == odd):
            assert (code, " is empty\n" in said) == (1, True)
        elif odd.stem == "NUL" and given == odd:  # as `data build` says
            assert (code, "is not text (byte 0 is 0)" in said) == (1, True)
        else:
            assert code == 0
            assert table_rows(said)[0][4] == str(odd.stat().st_size)


def test_compress_and_decompress(
    cli: Cli, mini_run: FinishedRun, odd: Path, tmp_path: Path
) -> None:
    small, back = tmp_path / "small", tmp_path / "back"
    assert checked(cli, "compress", mini_run.path, odd, "--out", small)[0] == 0
    assert checked(cli, "decompress", mini_run.path, small, "--out", back)[0] == 0
    assert back.read_bytes() == odd.read_bytes()
    code, said = checked(cli, "decompress", mini_run.path, odd, "--out", tmp_path / "other")
    assert (code, "not a text compressed by paramgolf" in said) == (1, True)


@pytest.mark.parametrize("name", ["empty", "byte", "NUL"])
def test_prove(cli: Cli, mini_run: FinishedRun, name: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXTS[name])
    code, said = checked(cli, "prove", mini_run.path, "--text", tmp_path / "text")
    if name == "empty":
        assert (code, said) == (1, "paramgolf: the text is empty\n")
    else:
        assert (code, "verdict   proven" in said) == (0, True)


def test_generate(cli: Cli, mini_run: FinishedRun, odd: Path) -> None:
    if odd.stem == "NUL":
        pytest.skip("no argument of a command can contain it")
    options = ("--prompt", odd.read_text(), "--max-tokens", "5")
    code, said = checked(cli, "generate", mini_run.path, *options)
    assert (code, said.startswith(odd.read_text())) == (0, True)


def test_data_build_and_info(cli: Cli, odd: Path, tmp_path: Path) -> None:
    checked(cli, "data", "build", odd, "--out", tmp_path / "built", "--vocab-size", "300")
    for given in (odd, odd.parent):
        assert checked(cli, "data", "info", given)[0] == 1


@pytest.mark.parametrize(
    ("split", "name"), [*(("train", name) for name in TEXTS), ("val", "empty"), ("val", "NUL")]
)
def test_a_run_without_enough_text(
    cli: Cli, mini_run: FinishedRun, source: Path, split: str, name: str, tmp_path: Path
) -> None:
    shutil.copytree(source, tmp_path / "source")
    content = json.dumps({"text": TEXTS[name]}) + "\n"
    (tmp_path / "source" / f"{split}.jsonl").write_text(content)
    options = [*mini_options(tmp_path / "source"), "--out", str(tmp_path / "run")]
    options += ["--data.tokenizer", str(mini_run.path / "tokenizer.model")]
    code, said = checked(cli, "run", "tiny", *options)
    assert (code, split in said or "adapt" in said) == (1, True)


def test_a_text_that_the_tokenizer_drops(
    mini_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score per byte of nothing would not be a number."""
    tokenizer = Tokenizer.load(mini_run.path / "tokenizer.model")
    assert encoded("it", ["", "words"], tokenizer).texts == ["", "words"]
    nothing = np.array([tokenizer.bos], np.uint16)
    monkeypatch.setattr(tokenizer, "encode", lambda texts: [nothing for _ in texts])
    with pytest.raises(UserError) as error:
        encoded("it", ["words"], tokenizer)
    assert one_line(error) == "it contains no text that the tokenizer keeps"


# Names.

NAMES = ["[red]x.txt", "a[/b].txt", ":smile:.txt", "na\u00efve \u65e5.md", "[bold]"]


def test_names_are_shown_as_they_are(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "a[").mkdir()
    for name in NAMES:
        (tmp_path / name).write_text("Some words to score.\n")
    printed = cli.output("score", mini_run.path, *NAMES, cwd=tmp_path)
    assert [row[0] for row in table_rows(printed)] == [*NAMES, "total"]


def test_a_name_cannot_control_the_terminal(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path
) -> None:
    for name in ("\x1b[31mred.txt", "two\nlines.txt"):
        (tmp_path / "texts" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text("Some words to score.\n")
    (tmp_path / "texts" / "empty\x1b[31m.txt").touch()
    printed = cli.output("score", mini_run.path, tmp_path / "texts")
    names = [row[0] for row in table_rows(printed)]
    assert names == ["\ufffd[31mred.txt", "two\ufffdlines.txt", "total"]
    assert "empty\ufffd[31m.txt is empty" in printed


# Folders.


def test_a_folder_is_scored_file_by_file_and_in_total(
    cli: Cli, mini_run: FinishedRun, source: Path, tmp_path: Path
) -> None:
    texts = [*texts_of(source, "val")[:3], texts_of(source, "train")[0]]
    folder = tmp_path / "notes"
    names = ["a.txt", "b.md", "deeper/c.rst", "d.jsonl"]
    (folder / "deeper").mkdir(parents=True)
    for name, text in zip(names, texts, strict=True):
        content = json.dumps({"text": text}) + "\n" if name.endswith("l") else text
        (folder / name).write_text(content)
    (folder / ".hidden.txt").write_text("not scored")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "empty.txt").touch()
    (folder / "picture.png").write_bytes(b"not listed")
    printed = cli.output("score", mini_run.path, folder)
    *rows, total = table_rows(printed)
    assert [row[0] for row in rows] == sorted(names)
    assert [row[5] for row in rows] == ["held-out", "held-out", "in-sample", "held-out"]
    predictor = load(mini_run.path / "model.bin", device="cpu")
    scores = [predictor.score(text) for text in texts]
    size, tokens = sum(score.bytes for score in scores), sum(score.tokens for score in scores)
    nats = sum(score.loss_nats * score.tokens for score in scores)
    assert total[0] == "total"
    assert float(total[1]) == pytest.approx(nats / math.log(2) / size, abs=6e-5)
    assert float(total[2]) == pytest.approx(nats / tokens, abs=6e-5)
    assert total[3:6] == [f"{tokens:,}", f"{size:,}", "in-sample"]
    assert f"left out: {folder / 'binary.txt'} is not UTF-8 text" in printed
    assert f"left out: {folder / 'empty.txt'} is empty" in printed


def test_a_folder_and_files(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    """With full names, and no file twice."""
    (tmp_path / "notes").mkdir()
    for name in ("notes/a.txt", "notes/b.txt", "c.txt"):
        (tmp_path / name).write_text("Some words to score.\n")
    printed = cli.output("score", mini_run.path, "c.txt", "notes/b.txt", "notes", cwd=tmp_path)
    names = [row[0] for row in table_rows(printed)]
    assert names == ["c.txt", "notes/b.txt", "notes/a.txt", "total"]


def test_folders_without_a_text(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    assert "contains no text" in cli.error("score", mini_run.path, tmp_path)
    (tmp_path / "empty.txt").touch()
    message = cli.error("score", mini_run.path, tmp_path)
    assert f"no text to score: {tmp_path / 'empty.txt'} is empty" in message
    message = cli.error("score", mini_run.path, mini_run.path / "data")
    pattern = re.findall(r"such as (.*)\n", message)[0]
    shards = sorted(Path(pattern).parent.glob(Path(pattern).name))
    assert (
        table_rows(cli.output("score", mini_run.path, *shards))[0][5]
        == "held-out, bytes as decoded"
    )


def test_losses_are_those_of_one_text(cli: Cli, mini_run: FinishedRun, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("Some words to score.\n")
    losses = ("--losses", "losses.npy")
    message = cli.error("score", mini_run.path, "a.txt", "b.txt", *losses, cwd=tmp_path, code=2)
    assert "--losses takes one text, not 2" in message
    assert not (tmp_path / "losses.npy").exists()


@pytest.mark.parametrize("columns", [80, 60])
def test_many_files_on_a_narrow_terminal(
    cli: Cli, mini_run: FinishedRun, tmp_path: Path, columns: int
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(120):
        (folder / f"a note with a rather long name, number {number}.txt").write_text("Words.")
    terminal = (
        "from rich.console import Console\n"
        "from paramgolf.cli.live import LiveReporter\n"
        f"LiveReporter.table = lambda self, table: Console(width={columns}).print(table)"
    )
    result = cli("score", mini_run.path, folder, patch=terminal)
    assert (result.code, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert sum(row[3] != "" for row in table_rows(result.stdout)) == 121


# What stands for an artifact.


def test_a_run_or_a_bundle_stands_for_its_artifact(
    cli: Cli, mini_run: FinishedRun, run_copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("Some words to score.\n")
    cli.output("bundle", mini_run.path, "--out", "bundle", cwd=tmp_path)
    outputs: list[tuple[str, ...]] = []
    for given in (mini_run.path, mini_run.path / "model.bin", "bundle"):
        printed = (
            cli.output("score", given, "text", cwd=tmp_path),
            cli.output("generate", given, "--max-tokens", "9", cwd=tmp_path),
            cli.output("export", given, "--out", "weights", cwd=tmp_path),
            cli.output("compress", given, "text", "--out", "small", cwd=tmp_path),
        )
        shutil.rmtree(tmp_path / "weights")
        (tmp_path / "small").unlink()
        outputs.append(printed)
    assert len(set(outputs)) == 1
    (run_copy / "model.bin").unlink()
    message = cli.error("score", run_copy, "text", cwd=tmp_path)
    assert f"is not packed yet; resume it with `paramgolf run --resume {run_copy}`" in message


def test_odd_texts_are_coded_in_sliding_windows(mini_run: FinishedRun) -> None:
    coder = TextCoder(mini_run.path / "model.bin", None, select_runtime("cpu"))
    for text in TEXTS.values():
        coded = coder.compress([text], stride=16)
        assert coder.decompress(coded.content, "it") == [text]
