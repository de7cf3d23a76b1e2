"""`paramgolf data build` with few documents, bad files, folders in the way and read-only disks."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import command
from tests.e2e.command import ENVIRONMENT, Cli, killed_while_writing, one_line_error
from tests.e2e.mini import shrinking_options

SENTENCE = "the quick brown fox jumps over a lazy dog while five boxing wizards look"
VOCAB = ("--vocab-size", "300")


def write_notes(folder: Path, number: int) -> None:
    """Write notes of random English words, 0.md, 1.md, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for note in range(number):
        chosen = random.Random(note).choices(SENTENCE.split(), k=400)
        (folder / f"{note}.md").write_text(" ".join(chosen) + ".\n")


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def splits_of(folder: Path) -> dict[str, int]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {name: split["documents"] for name, split in manifest["splits"].items()}


def printed_command(stdout: str, name: str = "next") -> list[str]:
    """Return the words of a command that was printed, without "paramgolf"."""
    (line,) = (line for line in stdout.splitlines() if line.startswith(f"{name} "))
    words = shlex.split(line.removeprefix(name))
    assert words[0] == "paramgolf"
    return words[1:]


def run_printed(words: list[str], cli: Cli, out: Path) -> None:
    """Run a printed command as a mini run."""
    result = cli(*words, *shrinking_options(), "--out", out)
    assert (result.code, result.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "many"),
    [
        (2, "next", 9999),
        (3, "next", 9999),
        (40, "next", 9999),
        (40, "next", 500),
        (3, "on a GPU", 1),
    ],
)
def test_the_command_that_is_printed_works(
    number: int, name: str, many: int, cli: Cli, tmp_path: Path
) -> None:
    """Also that for large texts: as it would be if `many` tokens were many."""
    write_notes(tmp_path / "my notes", number)
    build = ("data", "build", tmp_path / "my notes", "--out", tmp_path / "a b", *VOCAB)
    patch = f"from paramgolf.data import advice as a; a._GPU_TOKENS = a._MANY_TOKENS = {many}"
    built = cli(*build, patch=patch)
    assert built.code == 0, built.stderr
    assert len(splits_of(tmp_path / "a b")) == min(number, 3)
    assert ("--data.val-targets 500" in built.stdout) == (many == 500)
    run_printed(printed_command(built.stdout, name), cli, tmp_path / "run")


def test_few_documents(cli: Cli, tmp_path: Path) -> None:
    write_notes(tmp_path / "notes", 3)
    three = cli("data", "build", "notes", "--out", "three", *VOCAB, cwd=tmp_path)
    assert splits_of(tmp_path / "three") == {"train": 1, "val": 1, "adapt": 1}
    assert "noise of about 0.40 BPB" in three.stdout
    assert "--adapt.text" not in three.stdout
    sources = ("notes/0.md", "notes/1.md")
    two = cli("data", "build", *sources, "--out", "two", *VOCAB, cwd=tmp_path)
    assert splits_of(tmp_path / "two") == {"train": 1, "val": 1}
    assert "the adapt split is empty" in two.stdout
    assert printed_command(two.stdout)[-2:] == ["--adapt.text", "none"]
    options = ("--val", "notes/1.md", "--out", "one")
    one = cli("data", "build", "notes/0.md", *options, *VOCAB, cwd=tmp_path)
    assert splits_of(tmp_path / "one") == {"train": 1, "val": 1}, one.stderr
    assert printed_command(one.stdout)[-2:] == ["--adapt.text", "none"]


def test_all_bad_files_are_listed_and_can_be_left_out(cli: Cli, tmp_path: Path) -> None:
    notes, out = tmp_path / "notes", tmp_path / "new" / "out"
    write_notes(notes, 40)
    arguments = ("data", "build", notes, "--out", out, *VOCAB)
    good = cli("data", "build", notes, "--out", tmp_path / "good", *VOCAB)
    assert good.code == 0, good.stderr
    for number in range(10):
        (notes / f"bad{number}.md").write_bytes(b"caf\xe9")
    (notes / "cut.jsonl").write_text('{"text": "whole"}\n{"text": ')
    (notes / "picture.txt").write_bytes(b"GIF\x00\x01")
    message = cli.error(*arguments)
    assert "12 of 52 files cannot be read" in message
    assert "bad0.md is not UTF-8 text (byte 3)" in message
    assert message.count(".md is not UTF-8") == 10
    assert "and 2 more" in message
    assert not out.parent.exists()
    skipped = cli(*arguments, "--skip-bad")
    assert skipped.code == 0, skipped.stderr
    for name in ("cut.jsonl", "picture.txt", "bad9.md"):
        assert name in skipped.stdout
        assert any(
            name in path for path in json.loads((out / "manifest.json").read_text())["skipped"]
        )
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["skipped"]) == 12
    ours, theirs = content_of(out), content_of(tmp_path / "good")
    assert {**ours, "manifest.json": b""} == {**theirs, "manifest.json": b""}
    assert "already complete" in cli(*arguments, "--skip-bad").stderr
    for path in notes.glob("*.md"):
        path.write_bytes(b"caf\xe9")
    assert "no file is left" in cli(*arguments[:4], tmp_path / "none", "--skip-bad").stderr


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("block", [7, 1 << 24])
def test_byte_order_marks(encoding: str, block: int, cli: Cli, tmp_path: Path) -> None:
    write_notes(tmp_path / "plain", 4)
    shutil.copytree(tmp_path / "plain", tmp_path / "marked")
    text = (tmp_path / "plain" / "1.md").read_text() + "na\u00efve \U0001f600\n"
    (tmp_path / "plain" / "1.md").write_text(text)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "marked" / "1.md").write_bytes((mark + text).encode(encoding))
    patch = f"""
from paramgolf.data import documents
documents._BLOCK_BYTES = documents._PART_BYTES = {block}
"""
    for name in ("plain", "marked"):
        result = cli("data", "build", name, "--out", f"{name}-out", *VOCAB, cwd=tmp_path,
                     patch=patch)  # fmt: skip
        assert result.code == 0, result.stderr
    ours, theirs = (content_of(tmp_path / f"{name}-out") for name in ("marked", "plain"))
    assert {**ours, "manifest.json": b""} == {**theirs, "manifest.json": b""}


def test_overwrite_replaces_only_what_a_build_left(cli: Cli, tmp_path: Path) -> None:
    write_notes(tmp_path / "notes", 4)
    out = tmp_path / "out"
    build = ("data", "build", tmp_path / "notes", "--out", out)
    assert cli(*build, *VOCAB, "--shard-tokens", "200").code == 0
    (out / "mine.txt").write_text("mine")
    before = content_of(out)
    assert "--overwrite" in cli.error(*build, "--vocab-size", "310", code=2)
    too_large = cli(*build, "--vocab-size", "60000", "--overwrite")
    assert (too_large.code, "too large" in too_large.stderr) == (1, True)
    assert content_of(out) == before  # until the new one is ready
    assert cli(*build, "--vocab-size", "310", "--overwrite").code == 0
    assert cli(*build[:-1], tmp_path / "fresh", "--vocab-size", "310").code == 0
    assert content_of(out) == {**content_of(tmp_path / "fresh"), "mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.model", "mine"),
        ("manifest.json", '{"datasets": []}'),
        ("fineweb_train_000000.bin", "mine"),
    ],
)
def test_files_of_something_else_are_never_replaced(
    name: str, content: str, cli: Cli, tmp_path: Path
) -> None:
    write_notes(tmp_path / "notes", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    for more in ([], ["--overwrite"]):
        build = ("data", "build", "notes", "--out", "out", *VOCAB, *more)
        assert f"contains {name}, which no build put" in cli.error(*build, cwd=tmp_path, code=2)
    assert content_of(tmp_path / "out") == {name: content.encode()}


@pytest.mark.slow
def test_an_interrupted_build_is_protected_but_not_from_overwrite(cli: Cli, tmp_path: Path) -> None:
    write_notes(tmp_path / "notes", 3)
    build = ("data", "build", tmp_path / "notes", "--out", tmp_path / "out")
    killed = command.start(*build, *VOCAB, patch=killed_while_writing(4))
    assert command.finish(killed).code == -signal.SIGKILL
    begun = content_of(tmp_path / "out")
    other = (*build, "--vocab-size", "310")
    assert "another vocab_size" in cli.error(*other, code=2)
    assert content_of(tmp_path / "out") == begun
    assert cli(*other, "--overwrite").code == 0
    assert cli(*other[:-3], tmp_path / "fresh", *other[-2:]).code == 0
    assert content_of(tmp_path / "out") == content_of(tmp_path / "fresh")


STOPPED = """
import os, signal
from paramgolf.data import build
real = build.write_json
def write_json(path, value):
    real(path, value)
    os.kill(os.getpid(), signal.{signal})
build.write_json = write_json
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_build_that_is_stopped_says_how_to_resume(
    name: str, code: int, cli: Cli, tmp_path: Path
) -> None:
    write_notes(tmp_path / "notes", 3)
    build = ("data", "build", "notes", "--out", "out", *VOCAB)
    stopped = cli(*build, cwd=tmp_path, patch=STOPPED.format(signal=name))
    assert stopped.code == code
    assert stopped.stderr.splitlines()[-1].endswith("; the same command resumes")
    assert (tmp_path / "out" / ".build" / "begun.json").exists()
    resumed = cli(*build, cwd=tmp_path)
    assert (resumed.code, "tokenizer" in resumed.stderr) == (0, False)


def test_standard_input_is_read_again_after_a_failure(tmp_path: Path) -> None:
    write_notes(tmp_path / "notes", 3)
    lines = [json.dumps({"text": path.read_text()}) for path in (tmp_path / "notes").iterdir()]
    good = b"\xef\xbb\xbf" + "\n".join(lines).encode()
    words = [sys.executable, "-m", "paramgolf", "data", "build", "-", "--out", "out", *VOCAB]
    for content, code in ((b"caf\xe9", 1), (good[:900], 1), (good, 0)):
        done = subprocess.run(
            words, cwd=tmp_path, env=ENVIRONMENT, input=content, capture_output=True, check=False
        )
        assert done.returncode == code, done.stderr
    assert splits_of(tmp_path / "out") == {"train": 1, "val": 1, "adapt": 1}


READ_ONLY = """
import errno, os
real = os.mkdir
def mkdir(path, *more, **options):
    if "out" in os.fspath(path):
        raise OSError(errno.{code}, os.strerror(errno.{code}), os.fspath(path))
    real(path, *more, **options)
os.mkdir = mkdir
"""


@pytest.mark.parametrize("code", ["EROFS", "EACCES"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_cannot_be_written(code: str, exists: bool, cli: Cli, tmp_path: Path) -> None:
    write_notes(tmp_path / "notes", 3)
    if exists:
        (tmp_path / "out").mkdir()
    build = ("data", "build", "notes", "--out", "out", *VOCAB)
    message = one_line_error(cli(*build, cwd=tmp_path, patch=READ_ONLY.format(code=code)))
    assert "cannot write out" in message
    assert "choose another directory" in message
    assert (tmp_path / "out").exists() == exists


def test_a_disk_that_fills_up_does_not_block_the_next_build(cli: Cli, tmp_path: Path) -> None:
    write_notes(tmp_path / "notes", 30)
    build = ("data", "build", "notes", "--out", "out")
    rooms = range(5_000, 80_000, 5_000)
    messages = [cli(*build, *VOCAB, cwd=tmp_path, max_file_bytes=room).stderr for room in rooms]
    assert any("chunk_000000.safetensors: File too large" in text for text in messages)
    assert not list((tmp_path / "out").glob("*.bin"))
    assert cli(*build, "--vocab-size", "310", cwd=tmp_path).code == 0


def test_a_file_in_place_of_the_folder(cli: Cli, tmp_path: Path) -> None:
    write_notes(tmp_path / "notes", 3)
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/out"):
        message = cli.error("data", "build", "notes", "--out", out, *VOCAB, cwd=tmp_path)
        assert f"cannot write {out}" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_info_on_other_folders(cli: Cli, tmp_path: Path) -> None:
    write_notes(tmp_path / "my notes", 3)
    message = cli.error("data", "info", "my notes", cwd=tmp_path)
    build = "`paramgolf data build 'my notes' --out 'data/my notes'`"
    assert (
        f"contains no token shards (*_train_*.bin, *_val_*.bin); build them with {build}" in message
    )
    assert "missing is not a directory" in cli.error("data", "info", "missing", cwd=tmp_path)
    assert cli("data", "build", "my notes", "--out", "out", *VOCAB, cwd=tmp_path).code == 0
    (tmp_path / "out" / "tokenizer.model").unlink()
    assert "--tokenizer" in cli.error("data", "info", "out", cwd=tmp_path)
