"""Sources of text: files, folders, globs and standard input, read as a stream of documents.

Plain text and Markdown are one document per file, JSON Lines and Parquet one per row.
"""

from __future__ import annotations

import codecs
import glob
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from paramgolf.data.documents import Document, is_jsonl, read_jsonl
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.files import replacing

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
STANDARD_INPUT = "-"
TEXT_KEYS = ("text", "content")
"""Keys or columns that may contain the text, by priority."""

_BLOCK_BYTES = 16 << 20
_ROWS = 1024
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins with that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

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
    blocks = _utf8_blocks(sys.stdin.buffer)
    try:
        start = next(blocks, b"")
        target = path.with_suffix(".jsonl") if start.lstrip().startswith(b"{") else path
        with replacing(target) as temporary, temporary.open("wb") as file:
            file.write(start)
            file.writelines(blocks)
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not {error.encoding} text; convert it") from error
    return target


def _utf8_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a file in blocks, as UTF-8 and without its byte order mark."""
    block = file.read(_BLOCK_BYTES)
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if block.startswith(mark):
            decoder = codecs.getincrementaldecoder(encoding)()
            while block:
                content = decoder.decode(block).encode()
                yield content[:_BLOCK_BYTES]
                yield content[_BLOCK_BYTES:]
                block = file.read(_BLOCK_BYTES)
            yield decoder.decode(b"", final=True).encode()
            return
    block = block.removeprefix(codecs.BOM_UTF8)
    while block:
        yield block
        block = file.read(_BLOCK_BYTES)


def read_documents(path: Path, text_key: str, progress: Progress) -> Iterator[Document]:
    """Yield the documents of a file.

    A plain text is one document. Above 16 MiB it is cut into several, at the ends of lines. It is
    UTF-8, or UTF-16 or UTF-32 with a byte order mark; the mark is removed.

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


def is_bad_file(error: UserError) -> bool:
    """Return whether an error of `read_documents` concerns its file, not a library or an option."""
    return not isinstance(error, ConfigError) and not isinstance(error.__cause__, ImportError)


def _read_plain(path: Path, progress: Progress) -> Iterator[Document]:
    done, rest = 0, b""
    try:
        with path.open("rb") as file:
            for block in _utf8_blocks(file):
                rest += block
                if len(rest) > _BLOCK_BYTES:
                    end = _last_end(rest)
                    yield _plain(path, done, rest[:end])
                    done, rest = done + end, rest[end:]
                progress(file.tell())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} begins with the byte order mark of {error.encoding}, but is not such text"
        ) from error
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
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {begin + error.start:,})") from error
    if (zero := content.find(b"\0")) >= 0:
        raise UserError(
            f"{path} is not text (byte {begin + zero:,} is 0), or UTF-16 without a byte order mark"
        )
    return Document(name, text)


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
