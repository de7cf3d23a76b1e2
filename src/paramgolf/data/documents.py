"""Documents, and JSON Lines files of them, compressed or not."""

from __future__ import annotations

import codecs
import hashlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from paramgolf.errors import UserError
from paramgolf.runtime.files import open_file

TEXT_KEYS = ("text", "content")
"""Keys or columns that may contain the text, by priority."""
MAX_LINE_BYTES = 64 << 20
"""Of a JSON Lines file, decompressed. Parsing takes some five times as much memory."""

_BLOCK_BYTES = 1 << 20
_ZST_WINDOW_BYTES = 128 << 20
_PART_BYTES = 1 << 10  # of a compressed file; a part of .zst decompresses to 32 MiB at most
JSONL_NAMES = "jsonl (or .ndjson; .gz, .xz and .zst, too)"
_START_BYTES = 1 << 16
_JSON = re.compile(rb'\s*(\[\s*)?\{\s*["}]')
_JSONL = re.compile(r"\.(jsonl?|ndjson)(\.gz|\.xz|\.zst)?$", re.I)


def _zst() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            "reading .zst needs zstandard: pip install 'paramgolf[data]', or pip install zstandard"
        ) from error
    return zstandard.ZstdDecompressor(max_window_size=_ZST_WINDOW_BYTES).decompressobj()


_MEMBERS: dict[bytes, Callable[[], Any]] = {
    rb"\x1f\x8b": lambda: zlib.decompressobj(31),
    rb"\xfd7zXZ": lzma.LZMADecompressor,
    rb"\(\xb5/\xfd|[P-_]\*M\x18": _zst,  # a frame, or one to skip
}
"""How a compressed file begins: what decompresses one of its members."""


def _decompressed(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a file in blocks; that of all members if it is compressed.

    Raises:
        OSError: if a member is damaged or incomplete, or is followed by anything but zeros.
    """
    part = file.read(_PART_BYTES)
    new = next((new for start, new in _MEMBERS.items() if re.match(start, part)), None)
    if new is None:
        yield part
        yield from iter(lambda: file.read(_BLOCK_BYTES), b"")
        return
    member = new()
    while part:
        if member.eof:
            member = new()
        try:
            yield member.decompress(part)
        except Exception as error:  # every library has its own
            raise OSError(str(error) or repr(error)) from error
        part = member.unused_data.lstrip(b"\0")
        while not part and (part := file.read(_PART_BYTES)) and member.eof:
            part = part.lstrip(b"\0")
    if not member.eof:
        raise OSError("the file is truncated")


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


def start_of(path: Path) -> bytes:
    """Return the first 64 KiB, or a little more, of a file's `text_blocks`."""
    start = b""
    for block in text_blocks(path):
        start += block
        if len(start) >= _START_BYTES:
            break
    return start


def is_jsonl(path: Path) -> bool:
    """Return whether a file is named like JSON Lines, or begins like an object or a list of them.

    The names are .jsonl, .ndjson and .json[.gz|.xz|.zst]. A list is refused when it is read.

    Raises:
        OSError, UnicodeDecodeError: see `text_blocks`.
    """
    return _JSONL.search(path.name) is not None or _JSON.match(start_of(path)) is not None


def find_jsonl(folder: Path, split: str) -> list[Path]:
    """Return the JSON Lines files of a split, in order of name.

    They are named `SPLIT*.jsonl[.gz|.xz|.zst]` or .ndjson: beside shards, .json is something else.
    """
    found = (path for path in folder.glob(f"{split}*") if _JSONL.search(path.name))
    return sorted(path for path in found if ".json" not in path.suffixes)


def text_blocks(path: Path, progress: Callable[[int, int], None] | None = None) -> Iterator[bytes]:
    """Yield the content of a file in blocks: decompressed, as UTF-8, without byte order mark.

    Text with the mark of UTF-16 or UTF-32 is converted. Bytes that are not UTF-8 stay as they are.

    Args:
        path: the file.
        progress: called with the number of bytes read and the size of the file.

    Raises:
        OSError: if the file cannot be read, is no regular file or is damaged.
        UnicodeDecodeError: if it has the mark of another encoding, but is not such text.
    """
    with open_file(path) as stored:
        size = os.fstat(stored.fileno()).st_size
        blocks, start = _decompressed(stored), b""
        for block in blocks:
            start += block
            if len(start) > 3:
                break
        is_32 = start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE))
        is_16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-32" if is_32 else "utf-16" if is_16 else "utf-8-sig"
        for text in codecs.iterdecode(chain([start], blocks), encoding, "surrogateescape"):
            if progress is not None:
                progress(stored.tell(), size)
            yield text.encode(errors="surrogateescape")


def read_jsonl(
    path: Path,
    progress: Callable[[int, int], None] | None = None,
    text_keys: Sequence[str] = TEXT_KEYS,
    blank: Callable[[], None] = lambda: None,
) -> Iterator[Document]:
    """Yield the documents of a JSON Lines file: an object per line, with a text and maybe an "id".

    Args:
        path: the file, plain or compressed.
        progress: called with the number of bytes read and the size of the file.
        text_keys: the text is the value of the first of these keys that an object has.
        blank: called for every line that is blank or of which the text is null: no document.

    Raises:
        UserError: naming the line that is not such an object, or a damaged file.
    """
    number = 0
    try:
        for number, line in enumerate(_lines(text_blocks(path, progress)), start=1):
            if document := _json_document(line, f"{path.name}:{number}", text_keys):
                yield document
            else:
                blank()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read {path} after line {number}: {reason}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path}, line {number}: not a UTF-8 JSON object with a "{text_keys[0]}" string '
            f"({type(error).__name__})"
        ) from error


def jsonl_lines(texts: Iterable[str]) -> bytes:
    """Return the JSON Lines of these documents, which `read_jsonl` reads."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _json_document(line: bytes, name: str, text_keys: Sequence[str]) -> Document | None:
    if not line.strip():
        return None
    # Of a number with more digits, which no key needs that is read, Python makes an error.
    value = json.loads(line, parse_int=lambda digits: int(digits[:4000]))
    if not isinstance(value, dict):
        raise TypeError
    text = value[next((key for key in text_keys if key in value), text_keys[0])]
    if text is None:
        return None
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
