"""Checks of the file or directory that a command will write, made before it computes anything."""

from __future__ import annotations

import os
from pathlib import Path

from paramgolf.errors import UserError


def require_new_file(path: Path, overwrite: bool) -> None:
    """Refuse an output file that cannot be written, or that would replace another file.

    Args:
        path: the file to write.
        overwrite: allow a regular file to be replaced.

    Raises:
        UserError: if `path` is a directory or special file, exists (unless `overwrite`), or its
            directory does not exist or is not writable.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is not a regular file; name another file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; replace it with --overwrite, or name another file")
    _require_writable(path.parent, path)


def require_new_directory(path: Path) -> None:
    """Refuse an output directory that contains something, or that cannot be created.

    Raises:
        UserError: if `path` is a file or a directory that is not empty, or its parent does not
            exist or is not writable.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a directory with --out")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path} is not empty; name another directory with --out")
    _require_writable(path if path.exists() else path.parent, path)


def _require_writable(folder: Path, path: Path) -> None:
    if not folder.exists():
        raise UserError(
            f"cannot write {path}: the directory {folder} does not exist; create it with "
            f"`mkdir -p {folder}`"
        )
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: {folder} is not a directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {folder} is not writable; choose another directory")
