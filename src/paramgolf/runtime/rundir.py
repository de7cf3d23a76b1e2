"""A run's directory: everything that a run writes, each file complete or absent."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from paramgolf.checked import from_json, to_json
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.files import (
    exclusive,
    locked,
    parse_json,
    read_file,
    read_json,
    write_error,
    write_json,
)
from paramgolf.version import __version__

CODE_NAME = "train_gpt.py"
"""The counted code file, as the challenge names it."""

INCOMPLETE_EVENT = "incomplete_event"
"""Kind of the event that stands for a last line of events.jsonl that was not written to its end."""

Listener = Callable[[str, dict[str, Any]], None]
"""Called with the kind and the values of every event of a run."""

_EPOCH = time.time() - time.monotonic()
"""Events tell the time of the clock that measures seconds: setting the machine's clock while a
run works, or suspending the machine, does not make them differ."""

_PACKAGES = ("torch", "numpy", "sentencepiece", "safetensors", "constriction")


class RunDir:
    """Paths and files of one run.

    A stage is finished when its result, `stages/NAME.json`, exists. An interrupted run resumes
    after its last finished stage.
    """

    def __init__(self, path: Path, keeps_events: bool = True) -> None:
        """Name the run at `path`; of several ranks, only one keeps the events."""
        self.path = path
        self._keeps_events = keeps_events
        self.listener: Listener | None = None
        """Called with every event; it must not fail."""
        self.config_file = path / "config.json"
        self.takeover_file = path / "takeover.json"
        """Exists until everything that `--from` takes over is in place."""
        self.events_file = path / "events.jsonl"
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
    def create(
        cls,
        path: Path,
        recipe: str,
        config: RunConfig,
        from_run: Path | None = None,
        requested_seeds: Sequence[int] = (),
    ) -> RunDir:
        """Create the directory of a new run with its configuration and environment.

        Of several processes that create the same run at the same time, one succeeds.

        Args:
            path: the new directory; it may exist if it is empty.
            recipe: the recipe's name.
            config: the configuration.
            from_run: a run to take finished stages over from, see `pipeline.takeover`.
            requested_seeds: all seeds of the study that this run belongs to.

        Raises:
            UserError: if the directory is in use or not empty, or cannot be written.
        """
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; name a directory with --out")
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with exclusive(path):
                # Without a configuration, these are the remains of an attempt to create a run.
                remains = (run.takeover_file.name, "environment.json")
                if any(f.name not in remains and f.name[0] != "." for f in path.iterdir()):
                    raise UserError(
                        f"{path} is not empty: resume the run in it with `paramgolf run --resume "
                        f"{path}`, or name another directory with --out"
                    )
                run.takeover_file.unlink(missing_ok=True)
                environment = this_environment()
                if requested_seeds:
                    environment["requested_seeds"] = list(requested_seeds)
                write_json(path / "environment.json", environment)
                if from_run is not None:
                    write_json(run.takeover_file, {"from": str(from_run.resolve())})
                write_json(run.config_file, {"recipe": recipe, **to_json(config)})
        except OSError as error:
            raise write_error(path, error) from error
        return run

    @classmethod
    def open(cls, path: Path) -> tuple[RunDir, str, RunConfig]:
        """Open an existing run; return it with its recipe's name and its configuration.

        Raises:
            UserError: if `path` contains no run, or naming what is wrong in a file of its stages.
        """
        run = cls(path)
        if not run.config_file.is_file():
            raise UserError(
                f"{path} contains no run (no config.json); start one: paramgolf run tiny"
            )
        values = read_json(run.config_file)
        if not isinstance(values, dict):
            raise UserError(f"{run.config_file} contains no configuration")
        recipe = str(values.pop("recipe", "?"))
        if not recipe.isprintable():  # it would be printed
            raise UserError(f"{run.config_file}: invalid recipe {recipe!r}: expected a name")
        try:
            config = from_json(RunConfig, values)
        except ConfigError as error:
            raise ConfigError(
                f"{run.config_file}: {error}; if another version of paramgolf wrote it, use that"
            ) from error
        try:
            from paramgolf.runtime.records import require_records
        except ModuleNotFoundError as error:  # the code file reads only what it wrote itself
            if error.name != "paramgolf.runtime.records":
                raise
        else:
            require_records(run)
        return run, recipe, config

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working on this run; clean up after one that was killed.

        Raises:
            UserError: if another process works on it now.
        """
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a directory")
        with locked(self.path):
            self._remove_incomplete_event()
            yield

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to events.jsonl."""
        if not self._keeps_events:
            return
        line = json.dumps({"time": round(_EPOCH + time.monotonic(), 3), "event": kind, **values})
        size = self.events_file.stat().st_size if self.events_file.exists() else 0
        try:
            with self.events_file.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.events_file, size)  # leave no incomplete line
            raise write_error(self.events_file, error) from error
        if self.listener:
            self.listener(kind, values)

    def read_events(self) -> list[dict[str, Any]]:
        """Return all events so far; none if the file does not exist.

        In place of an incomplete last line (the process was killed while writing it), the list
        ends with an event of the kind `INCOMPLETE_EVENT`.

        Raises:
            UserError: if the file cannot be read or any other line is damaged.
        """
        events, rest = self._parsed_events()
        if rest:
            moment = round(self.events_file.stat().st_mtime, 3)
            events.append({"time": moment, "event": INCOMPLETE_EVENT, "bytes": len(rest)})
        return events

    def _parsed_events(self) -> tuple[list[dict[str, Any]], bytes]:
        """The complete events, and the incomplete last line, which is empty in most cases."""
        if not self.events_file.exists():
            return [], b""
        events = []
        lines = read_file(self.events_file).splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                events.append(parse_json(line, f"{self.events_file}, line {number}"))
            except UserError:
                if number == len(lines):
                    return events, line
                raise
        return events, b""

    def _remove_incomplete_event(self) -> None:
        """Remove an incomplete last line, so that the next event begins on a line of its own."""
        _, rest = self._parsed_events()
        if rest:
            os.truncate(self.events_file, self.events_file.stat().st_size - len(rest))
            self.event(INCOMPLETE_EVENT, bytes=len(rest))
        elif self.events_file.exists() and not self.events_file.read_bytes().endswith(b"\n"):
            with self.events_file.open("a") as file:
                file.write("\n")

    def stage_file(self, stage: str) -> Path:
        """Return the path of a stage's result, which exists if the stage is finished."""
        return self.path / "stages" / f"{stage}.json"

    def stage_result(self, stage: str) -> dict[str, Any] | None:
        """Return what a stage measured; None while it is not finished."""
        path = self.stage_file(stage)
        return read_json(path) if path.exists() else None

    def finish_stage(self, stage: str, result: dict[str, Any]) -> None:
        """Write a stage's result, after all its other files: the stage is finished."""
        write_json(self.stage_file(stage), result)


def this_environment() -> dict[str, Any]:
    """Return what environment.json says: versions, machine, threads."""
    return {
        "paramgolf": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "cpu": cpu_model(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_threads": torch.get_num_threads(),
    }


def cpu_model() -> str:
    """Return the name of this machine's processor; of its kind if the system does not tell more."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
