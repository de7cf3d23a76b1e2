"""All runs below some folders, one row each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from paramgolf.data.claims import is_self_reported
from paramgolf.errors import UserError
from paramgolf.runtime.files import read_json
from paramgolf.runtime.records import read_audit, read_results
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.bits_per_byte import shown_label
from paramgolf.study.runs import SeedRun
from paramgolf.verify.checks import audit_is_current

SortKey = Literal["date", "score", "size", "recipe", "path"]
AuditState = Literal["passed", "FAILED", "incomplete", "outdated", "none"]

_STAGES = ("prepare", "train", "adapt", "pack", "score")


class ListedRun(NamedTuple):
    """One run."""

    path: Path
    recipe: str
    seed: int
    state: str
    """"finished", or "before STAGE": the stage that comes next; or "unreadable"."""
    bpb: float | None
    """Of the last score; None: not finished."""
    label: str
    """Of that score."""
    bytes: int | None
    """Of code and model."""
    audit: AuditState
    date: float
    """When its last stage finished, in seconds since 1970."""
    text: tuple[str, str] = ("", "")
    """SHA-256 of the scored text (empty: not finished, or not recorded), and in which form it comes
    back from its tokens. Only scores with the same are comparable."""
    tokenizer_is_self_reported: bool = False
    """Whether its tokenizer is not counted because of what a source.json says alone."""


_KEYS: dict[SortKey, Callable[[ListedRun], Any]] = {
    "date": lambda run: -run.date,
    "score": lambda run: (run.bpb is None, run.bpb),  # of one text in one form
    "size": lambda run: (run.bytes is None, run.bytes),
    "recipe": lambda run: (run.recipe, run.seed, run.path),
    "path": lambda run: run.path,
}


def list_runs(folders: Sequence[Path], sort: SortKey) -> list[ListedRun]:
    """Return the runs in and below some folders, each once.

    Newest first, or lowest score, smallest size, or alphabetically; unfinished runs last. By score,
    the runs of each text stay together, that of the newest run first: scores of different texts, or
    of different forms of a text, are not comparable.

    Raises:
        UserError: if a folder does not exist.
    """
    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise UserError(f"{missing} is not a directory; start a run with `paramgolf run tiny`")
    paths = {path.resolve(): path for folder in folders for path in _run_directories(folder)}
    runs = sorted(map(_read, paths.values()), key=_KEYS[sort])
    if sort == "score":
        texts = texts_of(runs)
        runs.sort(key=lambda run: (run.bpb is None, texts.index(run.text)))
    return runs


def texts_of(runs: Sequence[ListedRun]) -> list[tuple[str, str]]:
    """Return every text that runs were scored on, with its form; that of the newest run first."""
    return list(dict.fromkeys(run.text for run in sorted(runs, key=_KEYS["date"])))


def _run_directories(folder: Path) -> Iterator[Path]:
    """Yield the directories that contain a run; directories inside of runs are not searched."""
    for root, folders, files in os.walk(folder):
        if "config.json" in files:
            path = Path(root)
            folders.clear()
            if "model.safetensors" not in files:  # written by `export`
                yield path
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _read(path: Path) -> ListedRun:
    run = RunDir(path)
    files = [run.stage_file(stage) for stage in _STAGES]
    date = max(f.stat().st_mtime for f in (run.config_file, *files) if f.exists())
    try:
        config = read_json(run.config_file)
        recipe, seed = config["recipe"], config["seed"]
        if not recipe.isprintable():
            raise UserError("the name of the recipe has control characters")
        if not run.results_file.exists():
            following = next((file.stem for file in files if not file.exists()), _STAGES[-1])
            state = f"before {following}"
            return ListedRun(path, recipe, seed, state, None, "", None, "none", date)
        results = read_results(run)
        score = list(results["stages"].values())[-1]
        size, audit = results["bytes"]["total"], _audit(path)
        finished = SeedRun(path, seed, results)
        text = (finished.text_sha256, finished.restores)
        label = shown_label(score["label"], score["bytes_are"])  # the form stands below the table
        claimed = is_self_reported(results["tokenizer"])
        return ListedRun(
            path, recipe, seed, "finished", score["bpb"], label, size, audit, date, text, claimed
        )
    except (UserError, KeyError, TypeError, AttributeError, IndexError):
        return ListedRun(path, "?", 0, "unreadable", None, "", None, "none", date)


def _audit(path: Path) -> AuditState:
    file = path / "audit.json"
    if not file.exists():
        return "none"
    audit = read_audit(RunDir(path))
    if not audit_is_current(path):
        return "outdated"
    return "passed" if audit["passed"] else "FAILED" if audit["failed"] else "incomplete"
