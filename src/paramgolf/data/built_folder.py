"""The folder that `data build` fills: whether it is one, with which settings, and its removal."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

from paramgolf.checked import Range
from paramgolf.data.overlap import Overlap
from paramgolf.data.shards import MANIFEST, find_splits
from paramgolf.data.streams import ORIGINALS
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.files import read_json
from paramgolf.runtime.schema import COUNT, read_record, require_schema

_OUTPUT = re.compile(
    r"text_(train|val|val_bytes|adapt)_\d{6}\.bin|tokenizer\.model|provenance\.safetensors|"
    + "|".join(map(re.escape, (MANIFEST, ORIGINALS)))
)
"""Names of the files that a build writes."""
_SPLIT = {"documents": int, "tokens": int, "bytes": int, "shards": {str: str}}
_BUILT = {
    "settings": {},
    "documents": {"read": int, "duplicates": int, "empty": int, "blank?": int},
    "overlap": dict.fromkeys(Overlap._fields, int),
    "skipped?": [str],
    "tokenizer": {"vocab_size": COUNT},
    "splits": {"train": _SPLIT, "val": _SPLIT, str: _SPLIT},
}
_BEGUN = {
    "settings": {},
    "ends": [float, 1],
    "salt": Range("a whole number of 64 bits", lambda x: type(x) is int and 0 <= x < 1 << 64),
    "skipped": [str],
    "trained_on": ({"documents": int, "bytes": int}, None),
}
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


def require_manifest(out: Path, built: dict[str, Any]) -> None:
    """Check what `built_manifest` returned.

    Raises:
        UserError: naming the first key that is missing or wrong.
    """
    require_schema(built, _BUILT, str(out / MANIFEST), "build the folder again, with --overwrite")


def read_begun(path: Path) -> dict[str, Any]:
    """Return what an unfinished build wrote when it began.

    Raises:
        UserError: if it cannot be read, or naming the first key that is missing or wrong.
    """
    advice = f"remove {path.parent}, and build again"
    begun = read_record(path, _BEGUN, advice)
    if len(begun["ends"]) != 2:
        raise UserError(f"{path}: ends is {begun['ends']!r}; expected two numbers: {advice}"[:500])
    return begun


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
