"""Taking over finished stages of another run (`--from`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from paramgolf.checked import to_json
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.files import copy_file, write_bytes
from paramgolf.runtime.rundir import RunDir
from paramgolf.runtime.schema import read_record

_DEPENDS_ON = {
    "prepare": ("data", "model.vocab_size"),
    "train": ("seed", "model", "train"),
    "adapt": ("adapt",),
}
"""The configuration keys on which a stage's files depend, beyond those of earlier stages."""


def create_from(
    from_run: Path,
    path: Path,
    recipe: str,
    config: RunConfig,
    requested_seeds: Sequence[int] = (),
) -> None:
    """Create the directory of a run with the finished stages that it takes over from another run.

    Raises:
        UserError: if that run has not prepared its text, or `path` cannot become a run.
        ConfigError: if the configurations differ in anything that the text depends on.
    """
    source, _, theirs = RunDir.open(from_run)
    _stages_to_take(source, theirs, config, required=("prepare",))
    run = RunDir.create(path, recipe, config, from_run, requested_seeds)
    with run.locked():
        take_over(run, config)


def require_trained(from_run: Path, config: RunConfig) -> None:
    """Check that a run of `config` can take trained weights over from another run.

    Raises:
        UserError: if that run has not finished training.
        ConfigError: if the configurations differ in anything that the trained weights depend on.
    """
    source, _, theirs = RunDir.open(from_run)
    _stages_to_take(source, theirs, config, required=("prepare", "train"))


def take_over(run: RunDir, config: RunConfig) -> None:
    """Copy the files, the events and then the results of the stages that a new run takes over.

    Until that is done, `RunDir.takeover_file` exists. If interrupted, call this again before any
    stage: a stage whose weights are missing would train them.

    Raises:
        UserError: if the other run no longer exists or a file cannot be copied.
    """
    source, _, theirs = RunDir.open(
        Path(read_record(run.takeover_file, {"from": str}, "restore it")["from"])
    )
    stages = _stages_to_take(source, theirs, config, required=("prepare",))
    files = [path for path in sorted(source.data.rglob("*")) if path.is_file()]
    files.append(source.tokenizer)
    if "train" in stages:
        files.append(source.trained)
    if "adapt" in stages and source.adapted.exists():
        files.append(source.adapted)
    for file in files:
        copy_file(file, run.path / file.relative_to(source.path))
    # They tell how the stages went, and the audit compares them with the seconds of the stages.
    write_bytes(run.events_file, _events_of(source, stages))
    for stage in stages:
        result = source.stage_result(stage) or {}
        run.finish_stage(stage, {**result, "taken_from": str(source.path)})
    run.takeover_file.unlink()


def _events_of(source: RunDir, stages: list[str]) -> bytes:
    """Return the lines of events.jsonl up to the first stage that is not taken over."""
    lines: list[str] = []
    for event in source.read_events():
        if event["event"] == "stage_started" and event["stage"] not in stages:
            break
        lines.append(json.dumps(event) + "\n")
    return "".join(lines).encode()


def best_source(config: RunConfig, runs: Iterable[Path]) -> Path | None:
    """Return the run from which a run of `config` can take over most stages, or None."""
    stages: dict[Path, int] = {}
    for path in runs:
        with suppress(UserError):  # no run, nothing prepared, or of another text
            source, _, theirs = RunDir.open(path)
            stages[path] = len(_stages_to_take(source, theirs, config, required=("prepare",)))
    return max(stages, key=lambda path: stages[path], default=None)


def _stages_to_take(
    source: RunDir, source_config: RunConfig, config: RunConfig, required: Sequence[str]
) -> list[str]:
    """The stages of another run whose files a run of `config` can take over.

    Raises:
        UserError: if that run has not finished a required stage.
        ConfigError: if the configurations differ in a key on which a required stage depends.
    """
    ours, theirs = to_json(config), to_json(source_config)
    taken: list[str] = []
    for stage, keys in _DEPENDS_ON.items():
        different = next((found for key in keys if (found := _difference(key, ours, theirs))), "")
        finished = source.stage_result(stage) is not None
        if different and stage in required:
            raise ConfigError(
                f"{different} differs from that of {source.path}: with --from, only adapt, pack "
                "and score may change"
            )
        if not finished and stage in required:
            raise UserError(
                f"{source.path} has not finished the stage {stage!r}; resume it first with "
                f"`paramgolf run --resume {source.path}`"
            )
        if different or not finished:
            break
        taken.append(stage)
    return taken


def _difference(key: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Return the first key that differs, of a section or the one that is named; "": none does."""
    section, _, name = key.partition(".")
    one, other = ours[section], theirs[section]
    if not isinstance(one, dict):
        return key if one != other else ""
    names = [name] if name else list(one)
    return next((f"{section}.{name}" for name in names if one[name] != other[name]), "")
