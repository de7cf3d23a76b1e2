"""Files: atomic writes (whole or not at all), locks, JSON, arrays, tensors, hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from paramgolf.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON_BYTES = 64 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` when the block ends without error.

    Raises:
        UserError: on an OSError, which may come from the block; `path` is as before.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> UserError:
    """Explain why `path` could not be written: which file is at fault, and what to do."""
    reason = error.strerror or error
    if error.errno in _NO_SPACE:  # a copy that runs out of space names its source
        return UserError(f"cannot write {path}: {reason}; free space or choose another directory")
    if error.filename and Path(error.filename) not in (path, _temporary(path), *path.parents):
        return UserError(f"cannot read {error.filename}: {reason}")
    advice = "; choose another directory" if error.errno in _NO_ACCESS else ""
    return UserError(f"cannot write {path}: {reason}{advice}")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a directory.

    Raises:
        UserError: if another process works there now.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is in use by another paramgolf process; wait for it or stop it"
            ) from None
        yield
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Like `exclusive`; also remove what a process that was killed while writing left there."""
    with exclusive(folder):
        for temporary in folder.rglob(".*.tmp"):
            temporary.unlink()
        yield


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content atomically."""
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file, atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a NumPy array as .npy, atomically."""
    content = io.BytesIO()
    np.save(content, array)
    write_bytes(path, content.getvalue())


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; a pipe, which could block for ever, is an error.

    Raises:
        OSError: if it cannot be opened or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    reason = os.strerror(code) if stat.S_ISDIR(mode) else "not a regular file"
    raise OSError(code, reason, str(path))


def read_file(path: Path, kind: str = "", max_bytes: int = 1 << 30) -> bytes:
    """Return the content of a regular file; errors call it `kind` and its path.

    Raises:
        UserError: if it cannot be read or is larger than `max_bytes`.
    """
    name = f"{kind} {path}".lstrip()
    try:
        with open_file(path) as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
    if len(content) > max_bytes:
        raise UserError(f"cannot read {name}: it has more than {max_bytes:,} bytes")
    return content


def read_json(path: Path) -> Any:
    """Read a JSON file of at most 64 MiB, all numbers finite and no key twice.

    Raises:
        UserError: if it is missing, not a regular file, larger, or not such JSON.
    """
    return parse_json(read_file(path, max_bytes=MAX_JSON_BYTES), str(path))


def read_key(path: Path, *keys: str) -> Any:
    """Return the value at nested keys of a JSON file; None if it has none there."""
    value = read_json(path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def parse_json(content: bytes, name: str) -> Any:
    """Parse such JSON; errors call it `name`.

    Raises:
        UserError: if it is not such JSON.
    """
    try:
        return json.loads(
            content, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {name}: {error}") from error


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def write_tensors(path: Path, tensors: dict[str, Tensor], **notes: Any) -> None:
    """Write named tensors and JSON notes to a safetensors file, atomically."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, metadata={"notes": json.dumps(notes)})
    write_bytes(path, content)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, to the CPU.

    Raises:
        UserError: if the file is missing, truncated or not a safetensors file.
    """
    try:
        open_file(path).close()
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("notes", "{}")
            notes = parse_json(text.encode(), f"the notes in {path}")
            if not isinstance(notes, dict):
                raise UserError(f"the notes in {path} are no JSON object")
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}") from error


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content.

    Raises:
        UserError: if it cannot be read or is not a regular file.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
