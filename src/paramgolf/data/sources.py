"""Sources of text: files, folders, globs and standard input, read as a stream of documents.

Plain text and Markdown are one document per file, JSON Lines and Parquet one per row.
"""

from __future__ import annotations

import glob
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from paramgolf.data.documents import Document, is_jsonl, read_jsonl
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.files import replacing

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
STANDARD_INPUT = "-"
TEXT_KEYS = ("text", "content")
"""Keys or columns that may contain the text, by priority."""

_BLOCK_BYTES = 16 << 20
_ROWS = 1024

Progress = Callable[[int], None]


def find_sources(names: Sequence[str], spooled: Path) -> list[Path]:
    """Return the files of sources, in order and without repetition.

    Args:
        names: files, folders (read recursively, without hidden files and other kinds of files),
            globs, or "-": standard input.
        spooled: where standard input is stored, since it can be read only once; if this file
            exists, it is used in place of standard input.

    Raises:
        UserError: naming a source that does not exist or contains no text.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT:
            found.append(_spooled(spooled))
        elif path.is_dir():
            found += _in_folder(path)
        elif path.exists():
            found.append(path)
        else:
            matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
            if not matches:
                raise UserError(f"{name} does not exist: name files, folders, globs, or - (stdin)")
            found += [match for match in matches if match.is_file()]
    return list(dict.fromkeys(found))


def _in_folder(folder: Path) -> list[Path]:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (path.suffix in (*TEXT_SUFFIXES, ".parquet") or is_jsonl(path))
        and path.is_file()
    ]
    if not files:
        kinds = ", ".join((*TEXT_SUFFIXES, ".jsonl[.gz|.xz|.zst]", ".parquet"))
        raise UserError(f"{folder} contains no text: expected files of the kinds {kinds}")
    return files


def _spooled(path: Path) -> Path:
    """Store standard input as a file: JSON Lines if it begins with `{`, else plain text."""
    for existing in (path, path.with_suffix(".jsonl")):
        if existing.exists():
            return existing
    start = sys.stdin.buffer.read(_BLOCK_BYTES)
    target = path.with_suffix(".jsonl") if start.lstrip().startswith(b"{") else path
    with replacing(target) as temporary, temporary.open("wb") as file:
        file.write(start)
        shutil.copyfileobj(sys.stdin.buffer, file, _BLOCK_BYTES)
    return target


def read_documents(path: Path, text_key: str, progress: Progress) -> Iterator[Document]:
    """Yield the documents of a file.

    A plain text is one document. Above 16 MiB it is cut into several, at the ends of lines.

    Args:
        path: the file.
        text_key: key or column of the text; "": one of `TEXT_KEYS`, or a Parquet file's only
            string column.
        progress: called with the number of bytes read.

    Raises:
        UserError: naming the file, and the line, byte or column that cannot be read.
    """
    if is_jsonl(path):
        return read_jsonl(
            path, lambda done, _: progress(done), (text_key,) if text_key else TEXT_KEYS
        )
    if path.suffix == ".parquet":
        return _read_parquet(path, text_key, progress)
    return _read_plain(path, progress)


def _read_plain(path: Path, progress: Progress) -> Iterator[Document]:
    done, rest = 0, b""
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                rest += block
                if len(rest) > _BLOCK_BYTES:
                    end = _last_end(rest)
                    yield _plain(path, done, rest[:end])
                    done, rest = done + end, rest[end:]
                progress(done + len(rest))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    yield _plain(path, done, rest)


def _last_end(content: bytes) -> int:
    """Return where to cut: after the last line that ends in the first block, or at a character."""
    end = content.rfind(b"\n", 0, _BLOCK_BYTES) + 1
    if end:
        return end
    end = _BLOCK_BYTES
    while end > _BLOCK_BYTES - 4 and content[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _plain(path: Path, begin: int, content: bytes) -> Document:
    name = f"{path} from byte {begin:,}" if begin else str(path)
    try:
        return Document(name, content.decode())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {begin + error.start}); convert it, or leave it out"
        ) from error


def _read_parquet(path: Path, text_key: str, progress: Progress) -> Iterator[Document]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(
            f"reading {path} needs pyarrow: pip install 'paramgolf[data]', or pip install pyarrow"
        ) from error
    try:
        size = path.stat().st_size
        with parquet.ParquetFile(path) as file:
            column = _text_column(path, file.schema_arrow, text_key)
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    if (text := value.as_py()) is not None:
                        yield Document(f"{path}:{number}", text)
                progress(size * number // max(1, file.metadata.num_rows))
    except (OSError, ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read the Parquet file {path}: {reason}") from error


def _text_column(path: Path, schema: Any, text_key: str) -> str:
    from pyarrow import types

    strings = [
        field.name
        for field in schema
        if types.is_string(field.type) or types.is_large_string(field.type)
    ]
    if text_key:
        if text_key in strings:
            return text_key
    else:
        for name in TEXT_KEYS:
            if name in strings:
                return name
        if len(strings) == 1:
            return strings[0]
    found = f"no string column {text_key!r}" if text_key else "several string columns or none"
    raise ConfigError(
        f"{path} has {found}: name the column of the text with --text-key; "
        f"its string columns: {', '.join(strings) or 'none'}"
    )
