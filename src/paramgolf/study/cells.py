"""The cells of an ablation: a grid of values, or a list of variants of one configuration."""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from paramgolf.checked import from_json, to_json
from paramgolf.config import RunConfig
from paramgolf.errors import ConfigError
from paramgolf.recipes import with_absolute_paths
from paramgolf.study.runs import flat_config

Values = dict[str, Any]
"""Value of every varied key."""

_MAX_NAME = 200
"""Characters of a folder's name; file systems allow 255 bytes."""


class Variant(NamedTuple):
    """One cell: what it changes in the configuration that all cells share."""

    values: Values
    """Of all keys that any cell changes."""
    config: RunConfig
    folder: str
    """Name of its folder: the keys that it changes itself, and their values."""


def parse_grid(config: RunConfig, vary: Sequence[str]) -> list[Variant]:
    """Return the cells spanned by `KEY=A,B` options, last key fastest.

    Args:
        config: the values of all other keys.
        vary: one key with its values each, as on the command line.

    Raises:
        ConfigError: if a key or value is invalid, or named twice.
    """
    keys = _parse_keys(flat_config(config), vary, "--vary")
    if not keys:
        raise ConfigError("name what to vary: --vary train.matrix_lr=0.02,0.04")
    combinations = itertools.product(*keys.values())
    return _variants(
        config, [dict(zip(keys, values, strict=True)) for values in combinations], "--vary"
    )


def parse_cells(config: RunConfig, cells: Sequence[Sequence[str]]) -> list[Variant]:
    """Return cells that are named one by one, each by its `KEY=VALUE` settings.

    Args:
        config: what the settings change; a cell without settings is this configuration.
        cells: the settings of every cell, as on the command line.

    Raises:
        ConfigError: if a key or value is invalid, or a key or cell named twice.
    """
    current = flat_config(config)
    changes: list[Values] = []
    for settings in cells:
        keys = _parse_keys(current, settings, "--cell")
        several = next((key for key, values in keys.items() if len(values) > 1), None)
        if several is not None:
            raise ConfigError(f"invalid --cell: {several} has several values; --vary spans a grid")
        changes.append({key: keys[key][0] for key in sorted(keys)})
    return _variants(config, changes, "--cell")


def _variants(config: RunConfig, changes: Sequence[Values], option: str) -> list[Variant]:
    """Return the cells that make these changes.

    Raises:
        ConfigError: if a value is invalid, or two cells are the same.
    """
    keys = list(dict.fromkeys(key for change in changes for key in change))
    cells: list[Variant] = []
    for change in changes:
        changed = to_json(config)
        for key, value in change.items():
            section, _, name = key.rpartition(".")
            (changed[section] if section else changed)[name] = value
        own = with_absolute_paths(from_json(RunConfig, changed))
        flat = flat_config(own)
        name = _folder_name({key: flat[key] for key in change})
        if any(own == other.config for other in cells):
            raise ConfigError(f"{option} names {name} twice")
        cells.append(Variant({key: flat[key] for key in keys}, own, name))
    return cells


def _parse_keys(current: Values, options: Sequence[str], option: str) -> dict[str, list[Any]]:
    """Return the values of every key in `options`, converted to the type of its current one."""
    keys: dict[str, list[Any]] = {}
    example = "KEY=A,B" if option == "--vary" else "KEY=VALUE"
    for setting in options:
        name, equals, values = setting.partition("=")
        key = name.strip().removeprefix("--").replace("-", "_")
        texts = [text.strip() for text in values.split(",")]
        if not equals or "" in texts or not key:
            raise ConfigError(
                f"invalid {option} {setting!r}: expected {example}, for example "
                f"{option} train.matrix_lr=0.02{',0.04' * (option == '--vary')}"
            )
        if key not in current:
            close = difflib.get_close_matches(key, current, n=1)
            hint = f"did you mean {close[0]}?" if close else "see `paramgolf run RECIPE --help`"
            raise ConfigError(f"invalid {option}: there is no key {key!r}; {hint}")
        if key == "seed":
            raise ConfigError(f"invalid {option} seed: name the seeds of every cell with --seeds")
        if key in keys:
            raise ConfigError(f"{option} {key} is given twice: name all its values at once")
        keys[key] = [_typed(text, current[key]) for text in texts]
    return keys


def _typed(text: str, like: Any) -> Any:
    """Convert `text` to the type of `like`; return it unchanged if it cannot be converted.

    `from_json` refuses such a text later with a message that names its key.
    """
    if isinstance(like, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return type(like)(text) if isinstance(like, int | float) else text
    except ValueError:
        return text


def _folder_name(values: Mapping[str, Any]) -> str:
    name = ",".join(f"{key}={quote(str(value), safe='')}" for key, value in values.items())
    if len(name) > _MAX_NAME:
        name = f"{name[:_MAX_NAME]},{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name or "unchanged"
