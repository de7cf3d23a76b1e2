"""What the manifest of `data build` says of the shards beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paramgolf.data.shards import MANIFEST
from paramgolf.errors import UserError
from paramgolf.runtime.files import read_json, read_key, sha256_of_file

VERSION = 2


def built_by_us(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder that `data build` filled; None for any other folder.

    Raises:
        UserError: if it is damaged, or of an older version.
    """
    path = folder / MANIFEST
    found = read_json(path) if path.exists() else None
    if not isinstance(found, dict) or "paramgolf" not in found:
        return None
    if found.get("version") != VERSION:
        raise UserError(
            f"{path} has version {found.get('version')}, this paramgolf writes {VERSION}: build "
            "the folder again, with --overwrite"
        )
    tokenizer, splits = found.get("tokenizer"), found.get("splits")
    good = isinstance(tokenizer, dict) and isinstance(tokenizer.get("sha256"), str)
    good = good and isinstance(splits, dict) and "train" in splits
    good = (
        good
        and all(map(_is_split, found["splits"].values()))
        and _is_origin(found["tokenizer"].get("trained_on"))
    )
    if not good:
        raise UserError(f"{path} is damaged: build the folder again, with --overwrite")
    return found


def _is_origin(trained_on: Any) -> bool:
    return trained_on is None or (
        isinstance(trained_on, dict)
        and type(trained_on.get("bytes")) is int
        and type(trained_on.get("documents")) in (int, type(None))
    )


def _is_split(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and isinstance(values.get("shards"), dict)
        and type(values.get("bytes")) is int
        and type(values.get("documents")) is int
        and isinstance(values.get("text_sha256"), str)
    )


def built_split(paths: Sequence[Path], tokenizer_sha256: str) -> dict[str, Any] | None:
    """Return what the manifest says of the split that these shards are, all in their order.

    None if there is no manifest of `data build`, or the shards are not as it wrote them.

    Raises:
        UserError: if the folder of a shard names another tokenizer.
    """
    for folder in dict.fromkeys(path.parent for path in paths):
        require_tokenizer(folder, tokenizer_sha256)
    built = built_by_us(paths[0].parent)
    if built is None:
        return None
    names = [path.name for path in paths]
    for split in built["splits"].values():
        if list(split["shards"]) == names:
            hashes = list(map(sha256_of_file, paths))
            return split if list(split["shards"].values()) == hashes else None
    return None


def require_tokenizer(folder: Path, sha256: str) -> None:
    """Check that a tokenizer is the one that a folder's shards were built with.

    Raises:
        UserError: if the manifest of `data build` in the folder, or the source.json of `data
            fetch`, names another one.
    """
    built, fetched, named = built_by_us(folder), folder / "source.json", None
    if built is not None:
        named = built["tokenizer"]["sha256"]
    elif fetched.exists():
        named = read_key(fetched, "files", "tokenizer.model", "sha256")
    if named not in (None, sha256):
        raise UserError(
            f"{folder} was built with another tokenizer (SHA-256 {str(named)[:16]} instead of "
            f"{sha256[:16]}): use its own, {folder / 'tokenizer.model'}"
        )
