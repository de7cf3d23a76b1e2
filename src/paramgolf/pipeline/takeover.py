"""A run that goes on from another run's text and weights (`--from`)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from paramgolf.config import RunConfig, to_json
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.files import copy_file
from paramgolf.runtime.rundir import RunDir

_SHAPED_BY = {"prepare": ("seed", "data", "model"), "train": ("train",), "adapt": ("adapt",)}
"""The keys of the configuration on which a stage's files depend, beside those of earlier stages."""


def create_from(from_run: Path, path: Path, recipe: str, config: RunConfig) -> None:
    """Create a run's directory with the text and the weights of another run, and their records.

    Raises:
        UserError: if that run has not finished training, or there is something at `path`.
        ConfigError: if the new configuration differs in anything that shaped the trained weights.
    """
    source, _, made_with = RunDir.open(from_run)
    stages = _stages_to_take(source, made_with, config)
    _take_over(stages, source, RunDir.create(path, recipe, config))


def best_source(config: RunConfig, runs: Iterable[Path]) -> Path | None:
    """Of some runs the one from which a run of `config` can take most stages over, if any can."""
    stages: dict[Path, int] = {}
    for path in runs:
        with suppress(UserError):  # there is no run, it has not trained, or not as `config` says
            source, _, made_with = RunDir.open(path)
            stages[path] = len(_stages_to_take(source, made_with, config))
    return max(stages, key=lambda path: stages[path], default=None)


def _stages_to_take(source: RunDir, made_with: RunConfig, config: RunConfig) -> list[str]:
    """The stages of another run whose files a run of `config` can take over.

    Raises:
        UserError: if that run has not finished training.
        ConfigError: if the new configuration differs in anything that shaped the trained weights.
    """
    ours, theirs = to_json(config), to_json(made_with)
    taken: list[str] = []
    for stage, keys in _SHAPED_BY.items():
        different = [key for key in keys if ours[key] != theirs[key]]
        if stage == "adapt" and (different or source.stage_result(stage) is None):
            break
        if different:
            raise ConfigError(
                f"{_first_difference(different[0], ours, theirs)} differs from that of "
                f"{source.path}: only adapt, pack and score may change with --from"
            )
        if source.stage_result(stage) is None:
            raise UserError(
                f"{source.path} has not finished the stage {stage!r}: --resume it first"
            )
        taken.append(stage)
    return taken


def _take_over(stages: list[str], source: RunDir, target: RunDir) -> None:
    """Copy the files of finished stages, then their records, which say that these are in place."""
    files = [path for path in sorted(source.data.rglob("*")) if path.is_file()]
    files += [source.tokenizer, source.trained]
    if "adapt" in stages and source.adapted.exists():
        files.append(source.adapted)
    for file in files:  # a resumed run believes in weights that are there: no half file, ever
        copy_file(file, target.path / file.relative_to(source.path))
    for stage in stages:
        record = source.stage_result(stage) or {}
        target.finish_stage(stage, {**record, "taken_from": str(source.path.resolve())})


def _first_difference(key: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    if not isinstance(ours[key], dict):
        return key
    return next(f"{key}.{name}" for name in ours[key] if ours[key][name] != theirs[key][name])
