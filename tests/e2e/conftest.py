"""Fixtures of the end-to-end tests: text, the command, and a finished run."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e import command
from tests.e2e.command import Cli
from tests.e2e.mini import LEARNING, mini_options, write_source


class FinishedRun(NamedTuple):
    """A run that was never interrupted."""

    path: Path
    stdout: str


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of train.jsonl and val.jsonl."""
    folder = tmp_path_factory.mktemp("source")
    write_source(folder)
    return folder


@pytest.fixture(scope="session")
def options(source: Path) -> list[str]:
    """The options of a mini run."""
    return mini_options(source)


@pytest.fixture(scope="session")
def cli() -> Iterator[Cli]:
    """The command, without the time that imports take."""
    warm = Cli()
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def mini_run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A mini run in a fresh process; do not write to its folder."""
    path = tmp_path_factory.mktemp("mini") / "run"
    result = command.run("run", "tiny", *options, "--out", path, "--verbose")
    assert result.code == 0, result.stderr
    assert result.stderr == ""
    return FinishedRun(path, result.stdout)


@pytest.fixture(scope="session")
def score_first_run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished mini run that learns while it scores; do not write to its folder."""
    path = tmp_path_factory.mktemp("score-first") / "run"
    result = command.run("run", "tiny-score-first", *options, *LEARNING, "--out", path)
    assert result.code == 0, result.stderr
    return path


@pytest.fixture
def run_copy(mini_run: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the mini run, tmp_path/run, that a test may change."""
    return Path(shutil.copytree(mini_run.path, tmp_path / "run"))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of links to all installed packages except paramgolf."""
    folder = tmp_path_factory.mktemp("libraries")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "paramgolf" not in entry.name and not entry.name.startswith("__editable__"):
            (folder / entry.name).symlink_to(entry)
    return folder
