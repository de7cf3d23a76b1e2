"""Files of documents: plain text and JSON Lines, compressed or not."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from paramgolf.errors import UserError
from paramgolf.runtime.files import open_file

MAX_LINE_BYTES = 64 << 20
"""Of a JSON Lines file, decompressed. Parsing takes some five times as much memory."""

_BLOCK_BYTES = 1 << 20
_ZST_WINDOW_BYTES = 128 << 20
_ZST_PART_BYTES = 1 << 10  # which decompresses to 32 MiB at most


def _blocks(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    return iter(lambda: file.read(_BLOCK_BYTES), b"")


def _gzip_blocks(stored: IO[bytes]) -> Iterator[bytes]:
    with gzip.open(stored) as file:
        yield from _blocks(file)


def _xz_blocks(stored: IO[bytes]) -> Iterator[bytes]:
    with lzma.open(stored) as file:
        yield from _blocks(file)


def _zst_blocks(stored: IO[bytes]) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"reading {stored.name} needs zstandard: pip install 'paramgolf[data]', or "
            "pip install zstandard"
        ) from error

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZST_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    while part := frame.unused_data or stored.read(_ZST_PART_BYTES):
        if frame.eof:
            frame = decompressor.decompressobj()
        try:
            yield frame.decompress(part)
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
    if not frame.eof:  # which the library's own reader would not report
        raise EOFError("the file ends in the middle of a frame")


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Split blocks into lines, and hold no more than a block and a line.

    Raises:
        OSError: if a line is too long.
    """
    begun: list[bytes] = []
    size = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in others):
            raise OSError(f"a line has more than {MAX_LINE_BYTES:,} bytes")
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun, size = [others[-1]], len(others[-1])
    if last := b"".join(begun):
        yield last


_BLOCKS: dict[str, Callable[[IO[bytes]], Iterator[bytes]]] = {
    ".jsonl": _blocks,
    ".gz": _gzip_blocks,
    ".xz": _xz_blocks,
    ".zst": _zst_blocks,
}
_JSONL = tuple(".jsonl" + suffix for suffix in ("", ".gz", ".xz", ".zst"))


class Document(NamedTuple):
    """One text, separate from all others."""

    name: str
    text: str


def batches(documents: Iterable[Document], chars: int) -> Iterator[list[Document]]:
    """Group documents, in order, into lists of at least `chars` characters but for the last."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def is_jsonl(path: Path) -> bool:
    """Return whether a path is named like a JSON Lines file."""
    return path.name.endswith(_JSONL)


def find_jsonl(folder: Path, split: str) -> list[Path]:
    """Return the JSON Lines files of a split, `SPLIT*.jsonl[.gz|.xz|.zst]`, in order of name."""
    return sorted(path for kind in _JSONL for path in folder.glob(f"{split}*{kind}"))


def read_jsonl(
    path: Path,
    progress: Callable[[int, int], None] | None = None,
    text_keys: Sequence[str] = ("text",),
) -> Iterator[Document]:
    """Yield the documents of a JSON Lines file: an object per line, with a text and maybe an "id".

    Args:
        path: the file, plain or compressed.
        progress: called with the number of bytes read and the size of the file.
        text_keys: the text is the value of the first of these keys that an object has.

    Raises:
        UserError: naming the line that is not such an object, or a damaged file.
    """
    number = 0
    try:
        with open_file(path) as stored:
            size = os.fstat(stored.fileno()).st_size
            for number, line in enumerate(_lines(_BLOCKS[path.suffix](stored)), start=1):
                if progress is not None:
                    progress(stored.tell(), size)
                yield _json_document(line, f"{path.name}:{number}", text_keys)
    except UserError:
        raise
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"cannot read {path} after line {number}: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path}, line {number}: not a UTF-8 JSON object with a "{text_keys[0]}" string '
            f"({type(error).__name__})"
        ) from error


def jsonl_lines(texts: Iterable[str]) -> bytes:
    """Return the JSON Lines of these documents, which `read_jsonl` reads."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _json_document(line: bytes, name: str, text_keys: Sequence[str]) -> Document:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise TypeError
    text = value[next((key for key in text_keys if key in value), text_keys[0])]
    if not isinstance(text, str):
        raise TypeError
    text.encode()  # fails for half of a surrogate pair, which is valid JSON
    return Document(str(value.get("id", name)), text)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        UserError: if it cannot be read or is not UTF-8, with the position of the invalid byte.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from error


def digest_record(text: str) -> bytes:
    """Return what `text_digest` hashes of one document: its length and its UTF-8 bytes."""
    content = text.encode()
    return len(content).to_bytes(8, "little") + content


def text_digest(texts: Iterable[str]) -> bytes:
    """Return the SHA-256 that names a text: its documents in order, each after its length."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(digest_record(text))
    return digest.digest()
