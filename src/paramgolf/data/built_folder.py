"""The folder that `data build` fills: whether it is one, with which settings, and its removal."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

from paramgolf.data.shards import MANIFEST, find_splits
from paramgolf.data.streams import ORIGINALS
from paramgolf.errors import ConfigError
from paramgolf.runtime.files import read_json

_OUTPUT = re.compile(
    r"text_(train|val|val_bytes|adapt)_\d{6}\.bin|tokenizer\.model|provenance\.safetensors|"
    + "|".join(map(re.escape, (MANIFEST, ORIGINALS)))
)
"""Names of the files that a build writes."""
_TEMPORARY = re.compile(r"\.(.*)\.\d+\.tmp")
"""Name of a file that a killed process was writing."""


def built_manifest(out: Path, begun: bool) -> dict[str, Any] | None:
    """Return the manifest of a finished build; None if there is none.

    Args:
        out: the folder.
        begun: whether an unfinished build is in it.

    Raises:
        ConfigError: if the folder contains files that no build put there, but that one would
            overwrite, or that a run would read as shards.
    """
    built = read_json(out / MANIFEST) if (out / MANIFEST).exists() else None
    if isinstance(built, dict) and "paramgolf" in built:
        return built
    names = {path.name for path in chain.from_iterable(find_splits(out).values())}
    names |= {path.name for path in out.iterdir() if _OUTPUT.fullmatch(path.name)}
    if names and (built is not None or not begun):
        raise ConfigError(
            f"{out} contains {min(names)}, which no build put there: choose another --out"
        )
    return None


def different_setting(built: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return what a folder was built with instead of the wanted settings; "" if nothing else."""
    for key, value in wanted.items():
        if built.get(key, False) != value:  # older folders lack the newest keys
            return "other files, or files of other sizes" if key == "files" else f"another {key}"
    return ""


def require_equal(out: Path, built: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a ConfigError if a folder was built with other settings."""
    if what := different_setting(built, wanted):
        raise ConfigError(
            f"{out} was built with {what}: choose another --out, or replace it with --overwrite"
        )


def remove_output(out: Path) -> None:
    """Remove the files of a build; the manifest first, so that the rest never seems complete."""
    (out / MANIFEST).unlink(missing_ok=True)
    for path in out.iterdir():
        if _OUTPUT.fullmatch(_TEMPORARY.sub(r"\1", path.name)):
            path.unlink()
