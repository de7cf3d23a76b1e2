"""Files of documents: plain text, and JSON Lines, compressed or not."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, NamedTuple

from paramgolf.errors import UserError

_OPENERS: dict[str, Callable[[IO[bytes]], AbstractContextManager[Iterable[bytes]]]] = {
    ".jsonl": nullcontext,
    ".gz": gzip.open,
    ".xz": lzma.open,
}


class Document(NamedTuple):
    """One text that is kept apart from the others."""

    name: str
    text: str


def is_jsonl(path: Path) -> bool:
    """Whether the name is that of a JSON Lines file."""
    return path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.xz"))


def find_jsonl(folder: Path, split: str) -> list[Path]:
    """The JSON Lines files of a split, `SPLIT*.jsonl[.gz|.xz]`, in order of their names."""
    patterns = (f"{split}*.jsonl", f"{split}*.jsonl.gz", f"{split}*.jsonl.xz")
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def read_jsonl(
    path: Path, progress: Callable[[int, int], None] | None = None
) -> Iterator[Document]:
    """Documents of a JSON Lines file with a "text" and, if given, an "id" in every line.

    Args:
        path: the file, plain or compressed.
        progress: called with the bytes of the file read and its size.

    Raises:
        UserError: naming the line that is no such object, or a broken file.
    """
    number = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as stored, _OPENERS[path.suffix](stored) as file:
            for number, line in enumerate(file, start=1):
                if progress is not None:
                    progress(stored.tell(), size)
                yield _json_document(line, f"{path.name}:{number}")
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"cannot read {path} after line {number}: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path}, line {number}: not a UTF-8 JSON object with a "text" string '
            f"({type(error).__name__})"
        ) from error


def _json_document(line: bytes, name: str) -> Document:
    value = json.loads(line)
    if not isinstance(value, dict) or not isinstance(value["text"], str):
        raise TypeError
    value["text"].encode()  # half of a surrogate pair is valid JSON, but no text
    return Document(str(value.get("id", name)), value["text"])


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: if it cannot be read or is not UTF-8, with the offending byte's position.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from error


def text_digest(texts: Iterable[str]) -> bytes:
    """SHA-256 over texts, each followed by a zero byte."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.digest()
