"""A run's directory: everything a run writes, each file complete or absent."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from paramgolf.config import RunConfig, from_json, to_json
from paramgolf.errors import UserError
from paramgolf.runtime.files import locked, read_json, write_json
from paramgolf.version import __version__

CODE_NAME = "train_gpt.py"
"""The code that counts, as the challenge calls it."""

Listener = Callable[[str, dict[str, Any]], None]
"""Takes the kind and the values of every event of a run."""

_PACKAGES = ("torch", "numpy", "sentencepiece", "safetensors", "constriction")


class RunDir:
    """Paths and records of one run.

    A stage is finished when its record `stages/NAME.json` exists; the record holds what the stage
    measured. A run that was killed goes on after its last finished stage.
    """

    def __init__(self, path: Path, keeps_events: bool = True) -> None:
        """A run at `path`; of several ranks, one keeps the events."""
        self.path = path
        self._keeps_events = keeps_events
        self.listener: Listener | None = None
        """Is told every event; it must not fail."""
        self.config_file = path / "config.json"
        self.results_file = path / "results.json"
        self.quantization_file = path / "quantization.json"
        self.data = path / "data"
        self.tokenizer = path / "tokenizer.model"
        self.provenance = path / "provenance.safetensors"
        self.artifact = path / "model.bin"
        self.documents = path / "documents.safetensors"
        self.code = path / CODE_NAME
        self.trained = path / "checkpoints" / "ema.safetensors"
        self.adapted = path / "checkpoints" / "adapted.safetensors"

    @classmethod
    def create(cls, path: Path, recipe: str, config: RunConfig) -> RunDir:
        """Create the directory of a new run and write its configuration and environment.

        Raises:
            UserError: if the directory holds something already.
        """
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; name a folder with --out")
        # What an attempt leaves that died before it wrote its configuration is no run.
        if path.exists() and any(
            not entry.name.startswith(".") and entry.name != "environment.json"
            for entry in path.iterdir()
        ):
            raise UserError(
                f"{path} is not empty: go on with `paramgolf run --resume {path}`, or name another "
                "folder with --out"
            )
        run = cls(path)
        write_json(path / "environment.json", _environment())
        write_json(run.config_file, {"recipe": recipe, **to_json(config)})
        return run

    @classmethod
    def open(cls, path: Path) -> tuple[RunDir, str, RunConfig]:
        """Open an existing run; gives its recipe's name and its configuration too.

        Raises:
            UserError: if there is no run at `path`.
        """
        run = cls(path)
        if not run.config_file.is_file():
            raise UserError(f"{path} holds no run (no config.json); start one: paramgolf run tiny")
        values = read_json(run.config_file)
        if not isinstance(values, dict):
            raise UserError(f"{run.config_file} holds no configuration")
        return run, values.pop("recipe", "?"), from_json(RunConfig, values)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working on this run.

        Raises:
            UserError: if another process does so now.
        """
        if not self.path.is_dir():
            raise UserError(f"there is no run {self.path}")
        with locked(self.path):
            yield

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to events.jsonl."""
        if not self._keeps_events:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **values})
        path = self.path / "events.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, size)  # no half line
            raise UserError(f"cannot write {path}: {error.strerror}; free space") from error
        if self.listener:
            self.listener(kind, values)

    def read_events(self) -> list[dict[str, Any]]:
        """All events so far; none if there is no such file.

        Raises:
            UserError: if it cannot be read.
        """
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}") from error

    def stage_file(self, stage: str) -> Path:
        """The file whose existence says that a stage is finished."""
        return self.path / "stages" / f"{stage}.json"

    def stage_result(self, stage: str) -> dict[str, Any] | None:
        """What a stage measured; None while it is not finished."""
        path = self.stage_file(stage)
        return read_json(path) if path.exists() else None

    def finish_stage(self, stage: str, record: dict[str, Any]) -> None:
        """Write a stage's record: the stage is finished, all its files are in place."""
        write_json(self.stage_file(stage), record)


def _environment() -> dict[str, Any]:
    return {
        "paramgolf": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_threads": torch.get_num_threads(),
    }
