"""A command that writes a file or directory first checks whether it can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.command import Cli
from tests.e2e.conftest import FinishedRun

# There are no such inputs: a command that reads them first complains about them.
FILES = {
    "compress": ["compress", "no-model", "no-text", "--out"],
    "decompress": ["decompress", "no-model", "no-text", "--out"],
    "score": ["score", "no-model", "no-text", "--losses"],
    "prove": ["prove", "no-model", "--text", "no-text", "--out"],
    "report": ["report", "no-run", "--out"],
}
DIRECTORIES = {
    "bundle": ["bundle", "no-run", "--out"],
    "export": ["export", "no-model", "--out"],
    "submission": ["submission", "no-run", "--out"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("precious")
    return tmp_path


@pytest.mark.parametrize("command", [*FILES.values(), *DIRECTORIES.values()], ids=" ".join)
def test_the_parent_must_be_a_directory(cli: Cli, folder: Path, command: Sequence[str]) -> None:
    message = cli.error(*command, "missing/parent/out", cwd=folder)
    assert "the directory missing/parent does not exist" in message
    assert "`mkdir -p missing/parent`" in message
    assert "file is not a directory" in cli.error(*command, "file/out", cwd=folder)
    assert [path.name for path in folder.iterdir()] == ["file"]
    read_only = "import os; os.access = lambda *given: False"
    result = cli(*command, "out", cwd=folder, patch=read_only)
    assert "cannot write out: . is not writable" in result.stderr


@pytest.mark.parametrize("command", FILES.values(), ids=FILES)
def test_a_file_is_replaced_only_on_request(cli: Cli, folder: Path, command: Sequence[str]) -> None:
    message = cli.error(*command, "file", cwd=folder)
    assert "file exists; replace it with --overwrite, or name another file" in message
    assert "no-" in cli.error(*command, "file", "--overwrite", cwd=folder)
    for out, reason in ((".", "a directory"), ("/dev/null", "not a regular file")):
        message = cli.error(*command, out, "--overwrite", cwd=folder)
        assert f"cannot write {out}: it is {reason}" in message
    assert (folder / "file").read_text() == "precious"


@pytest.mark.parametrize("command", DIRECTORIES.values(), ids=DIRECTORIES)
def test_a_directory_must_be_new_or_empty(cli: Cli, folder: Path, command: Sequence[str]) -> None:
    assert "file is a file; name a directory" in cli.error(*command, "file", cwd=folder)
    assert ". is not empty; name another" in cli.error(*command, ".", cwd=folder)


def test_overwrite_replaces_the_file(cli: Cli, mini_run: FinishedRun, folder: Path) -> None:
    (folder / "text").write_text("Some words.")
    coded = ("compress", mini_run.path, "text", "--out", "file", "--overwrite")
    assert ": file" in cli.output(*coded, cwd=folder)
    assert (folder / "file").read_bytes().startswith(b"PARATEXT")
