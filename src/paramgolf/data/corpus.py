"""Documents: the standard library's own documentation, and JSON Lines files."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import lzma
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, NamedTuple

from paramgolf.data.provenance import shingles
from paramgolf.errors import UserError

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_REPEATED_SHARE = 0.2
_SMALLEST_STDLIB_BYTES = 200_000
_OPENERS: dict[str, Callable[[IO[bytes]], AbstractContextManager[Iterable[bytes]]]] = {
    ".jsonl": nullcontext,
    ".gz": gzip.open,
    ".xz": lzma.open,
}


class Document(NamedTuple):
    """One text that is kept apart from the others."""

    name: str
    text: str


def stdlib_documents(progress: Callable[[int, int], None] | None = None) -> list[Document]:
    """The documentation of Python's standard library, one document a topic or module.

    Sources are parsed, never imported. A paragraph that shares more than a fifth of its shingles
    with earlier documents is left out, so that a split by document has next to nothing to share.

    Args:
        progress: called with the number of source files read and of all.

    Raises:
        UserError: if this Python was installed without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources = [
        path
        for path in sorted(root.rglob("*.py"))
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
    ]
    documents = list(_topics(root / "pydoc_data" / "topics.py"))
    for number, path in enumerate(sources, start=1):
        documents += _module_docstrings(path, path.relative_to(root).as_posix())
        if progress is not None:
            progress(number, len(sources))
    documents = list(_without_repeated_paragraphs(documents))
    if sum(len(document.text) for document in documents) < _SMALLEST_STDLIB_BYTES:
        raise UserError(
            f"{root} holds too little documentation for a corpus (this Python may be a stripped "
            "build); use a complete Python, or your own text with --data.source FOLDER"
        )
    return documents


def _topics(path: Path) -> Iterator[Document]:
    """The help topics of `pydoc`: one dictionary literal, assigned to `topics`."""
    if not path.is_file():
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            for name, text in sorted(topics.items()):
                yield Document(f"topic/{name}", text.strip() + "\n")


def _module_docstrings(path: Path, name: str) -> Iterator[Document]:
    """The docstrings of one module, if it has any, as one document."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and deliberately broken samples
        return
    texts = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if text := ast.get_docstring(node):
            texts.append(text if isinstance(node, ast.Module) else f"{node.name}: {text}")
    if texts:
        yield Document(f"module/{name}", "\n\n".join(texts) + "\n")


def _without_repeated_paragraphs(documents: Iterable[Document]) -> Iterator[Document]:
    seen: set[int] = set()
    for name, text in documents:
        kept: list[str] = []
        fresh: set[int] = set()
        for paragraph in text.split("\n\n"):
            hashes = set(shingles(paragraph).tolist())
            if len(hashes & seen) <= _REPEATED_SHARE * len(hashes):
                kept.append(paragraph)
                fresh |= hashes
        seen |= fresh
        if kept:
            yield Document(name, "\n\n".join(kept))


def split_by_hash(
    documents: Iterable[Document], shares: dict[str, float], rest: str
) -> dict[str, list[Document]]:
    """Split documents by the hash of their text, so that equal texts stay together.

    Args:
        documents: the documents; order is kept within a split.
        shares: share of the documents for each named split.
        rest: the split for all others.
    """
    splits: dict[str, list[Document]] = {rest: [], **{name: [] for name in shares}}
    for document in documents:
        digest = hashlib.sha256(b"split:" + document.text.encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        chosen = rest
        for name, share in shares.items():
            if position < share:
                chosen = name
                break
            position -= share
        splits[chosen].append(document)
    return splits


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
