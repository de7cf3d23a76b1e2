"""Sources of text: files, folders, globs, pipes and standard input, as a stream of documents.

What a file contains is decided by its content, so that it does not matter how it is named or given.
"""

from __future__ import annotations

import glob
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from paramgolf.data.documents import (
    TEXT_KEYS,
    Document,
    is_jsonl,
    read_jsonl,
    start_of,
    text_blocks,
)
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.files import open_file, replacing

STANDARD_INPUT = "-"
_KINDS = ".txt, .md, .markdown, .rst, .jsonl, .ndjson, .json (also .gz, .xz, .zst), .parquet"
_KIND = re.compile(r"\.(txt|md|markdown|rst|jsonl?|ndjson)(\.gz|\.xz|\.zst)?$|\.parquet$", re.I)
_NOT_READ = {b"PK\3\4": "a .zip", b"BZh": "a .bz2", b"7z\xbc\xaf": "a .7z", b"%PDF": "a PDF"}
"""How files begin that are no text, though they may hold some."""
_OBJECT = re.compile(rb'\s*\{[ \t]*["}]')  # and not on several lines
_LISTED_ENDINGS = 5
_PLAIN_BYTES = 16 << 20
_ROWS = 1024
_STRINGS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")

Progress = Callable[[int], None]


def is_stream(name: str) -> bool:
    """Return whether a source can be read only once: standard input or a pipe."""
    return name == STANDARD_INPUT or Path(name).is_fifo()


def find_sources(
    names: Sequence[str], stored: Path, note: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Return the files of sources, in order and without repetition.

    Args:
        names: files, folders (read recursively, without hidden files and other kinds of files),
            globs, pipes, or "-": standard input.
        stored: what can be read only once is stored as this path with "-N" added, for the source
            number N; if that file exists, it is used in place of the source.
        note: called with a line about each folder of which files are passed over.

    Raises:
        UserError: naming a source that does not exist, is a device or contains no text.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if is_stream(name):
            found.append(_stored(name, stored.with_name(f"{stored.name}-{names.index(name)}")))
        elif path.is_dir():
            found += _in_folder(path, note)
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise UserError(f"cannot read {name}: not a regular file; write {name} to a file first")
        else:
            matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
            if not matches:
                raise UserError(f"{name} does not exist: name files, folders, globs, or - (stdin)")
            found += [match for match in matches if match.is_file()]
    return list(dict.fromkeys(found))


def _in_folder(folder: Path, note: Callable[[str], None]) -> list[Path]:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    wanted = [path for path in files if _KIND.search(path.name) and not _is_other_json(path)]
    others = Counter(path.suffix for path in files if path not in set(wanted))
    passed_over = ""
    if others:
        most = others.most_common(_LISTED_ENDINGS)
        counts = [f"{count:,} {ending or 'without ending'}" for ending, count in most]
        passed_over = (
            f"passed over {', '.join(counts)}{', ...' if len(others) > len(most) else ''}; to read "
            f"them, name files or a glob, such as '{folder}/**/*{most[0][0]}'"
        )
    if not wanted:
        raise UserError(
            f"{folder} contains no text of the kinds {_KINDS}{passed_over and '; ' + passed_over}"
        )
    if others:
        note(f"{folder}: {passed_over}")
    return wanted


def _is_other_json(path: Path) -> bool:
    """Return whether a file is named .json, but is not JSON Lines: settings, a list, a notebook."""
    if not re.search(r"\.json\b", path.name, re.I):
        return False
    with suppress(OSError, UserError, ValueError):  # which `read_documents` reports
        return not _OBJECT.match(start_of(path))
    return False


def _stored(name: str, target: Path) -> Path:
    """Copy what can be read only once to a file, unless it exists."""
    if not target.exists():
        with replacing(target) as temporary, temporary.open("wb") as file:
            if name == STANDARD_INPUT:
                shutil.copyfileobj(sys.stdin.buffer, file)
            else:
                with open(name, "rb") as pipe:
                    shutil.copyfileobj(pipe, file)
    return target


def read_documents(
    path: Path,
    text_key: str,
    progress: Progress,
    blank: Callable[[], None] = lambda: None,
) -> Iterator[Document]:
    """Yield the documents of a file, by its content: Parquet, JSON Lines or plain text.

    JSON Lines is what is named so, and what begins like a JSON object (or a list of them, which is
    then refused). All else is plain text: one document, above 16 MiB cut into several, at the ends
    of lines. Both may be compressed, and are UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: the file.
        text_key: key or column of the text; "": one of `TEXT_KEYS`, or a Parquet file's only
            string column.
        progress: called with the number of bytes read.
        blank: called for every blank line of JSON Lines and every text that is null: no document.

    Raises:
        UserError: naming the file, and the line, byte or column that cannot be read.
    """
    try:
        with open_file(path) as file:
            is_parquet = path.suffix.lower() == ".parquet" or file.read(4) == b"PAR1"
        if is_parquet:
            yield from _read_parquet(path, text_key, progress, blank)
        elif is_jsonl(path):
            keys = (text_key,) if text_key else TEXT_KEYS
            yield from read_jsonl(path, lambda done, _: progress(done), keys, blank)
        else:
            yield from _read_plain(path, progress)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} begins with the byte order mark of {error.encoding}, but is not such text"
        ) from error


def is_bad_file(error: UserError) -> bool:
    """Return whether an error of `read_documents` concerns its file, not a library or an option."""
    return not isinstance(error, ConfigError) and not isinstance(error.__cause__, ImportError)


def _read_plain(path: Path, progress: Progress) -> Iterator[Document]:
    done, rest = 0, b""
    for block in text_blocks(path, lambda read, _: progress(read)):
        rest += block
        while len(rest) > _PLAIN_BYTES:
            end = _last_end(rest)
            yield _plain(path, done, rest[:end])
            done, rest = done + end, rest[end:]
    yield _plain(path, done, rest)


def _last_end(content: bytes) -> int:
    """Return where to cut: after the last line that ends in the first block, or at a character."""
    end = content.rfind(b"\n", 0, _PLAIN_BYTES) + 1
    if end:
        return end
    end = _PLAIN_BYTES
    while end > _PLAIN_BYTES - 4 and content[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _plain(path: Path, begin: int, content: bytes) -> Document:
    name = f"{path} from byte {begin:,}" if begin else str(path)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        kind = next((kind for start, kind in _NOT_READ.items() if content.startswith(start)), None)
        if kind and not begin:
            raise UserError(f"{path} is {kind}, which is not read: unpack it") from error
        raise UserError(f"{path} is not UTF-8 text (byte {begin + error.start:,})") from error
    if (zero := content.find(b"\0")) >= 0:
        raise UserError(
            f"{path} is not text (byte {begin + zero:,} is 0), or UTF-16 without a byte order mark"
        )
    return Document(name, text)


def _read_parquet(
    path: Path, text_key: str, progress: Progress, blank: Callable[[], None]
) -> Iterator[Document]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(
            f"reading {path} needs pyarrow: pip install 'paramgolf[data]', or pip install pyarrow"
        ) from error
    number = 0
    try:
        size = path.stat().st_size
        with parquet.ParquetFile(path) as file:
            column = _text_column(path, file.schema_arrow, text_key)
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    text = value.as_py()
                    if text is None:
                        blank()
                    else:
                        text = text.decode() if isinstance(text, bytes) else text
                        yield Document(f"{path}:{number}", text)
                progress(size * number // max(1, file.metadata.num_rows))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, row {number}: not UTF-8 text") from error
    except (OSError, ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read the Parquet file {path}: {reason}") from error


def _text_column(path: Path, schema: Any, text_key: str) -> str:
    """Return the column of the text: of strings, or of bytes if its name says that it is text.

    Raises:
        ConfigError: naming all columns and their types, if it is not clear which one it is.
    """
    from pyarrow.types import is_dictionary

    kinds = {
        field.name: str(field.type.value_type if is_dictionary(field.type) else field.type)
        for field in schema
    }
    strings = [name for name, kind in kinds.items() if kind in _STRINGS]
    for name in [text_key] if text_key else TEXT_KEYS:
        if kinds.get(name) in (*_STRINGS, *_BYTES):
            return name
    if not text_key and len(strings) == 1:
        return strings[0]
    found = f"no text column {text_key!r}" if text_key else f"{len(strings)} columns of strings"
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ConfigError(
        f"{path} has {found}: name the column of the text with --text-key; its columns: {columns}"
    )
