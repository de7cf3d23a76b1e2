"""What names stand for: entries of a table, and paths to a packed model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from paramgolf.errors import ConfigError, UserError

_T = TypeVar("_T")


def choose(
    what: str, name: str, possible: dict[str, _T], renamed: Mapping[str, str] | None = None
) -> _T:
    """Return the entry of that name; `renamed` are the names of today by former ones, for hints.

    Raises:
        ConfigError: if there is none; the message lists the possible names.
    """
    if name not in possible:
        close = difflib.get_close_matches(name, possible, n=1)
        if renamed and name in renamed:
            close = [renamed[name]]
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"unknown {what} {name!r}.{hint} Expected one of: {', '.join(possible)}")
    return possible[name]


def find_artifact(path: Path) -> Path:
    """Return the artifact that `path` names: a file, or the model.bin of a run or bundle.

    Raises:
        UserError: if `path` is a directory without a model.bin.
    """
    if not path.is_dir():
        return path
    artifact = path / "model.bin"
    if artifact.exists():
        return artifact
    if (path / "environment.json").exists():
        raise UserError(
            f"the run in {path} is not packed yet; resume it with `paramgolf run --resume {path}`"
        )
    inner = sorted(path.glob("*/model.bin"))
    hint = f"; name one of its runs, such as {inner[0].parent}" if inner else ""
    raise UserError(f"{path} contains no model.bin: it is neither a run nor a bundle{hint}")
