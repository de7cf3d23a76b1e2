"""Files of documents: plain text and JSON Lines, compressed or not."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, NamedTuple

from paramgolf.errors import UserError

_BLOCK_BYTES = 1 << 20


def _open_zst(stored: IO[bytes]) -> AbstractContextManager[Iterable[bytes]]:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"reading {stored.name} needs zstandard: pip install 'paramgolf[data]', or "
            "pip install zstandard"
        ) from error

    def blocks() -> Iterator[bytes]:
        frame = zstandard.ZstdDecompressor().decompressobj()
        while stored_block := frame.unused_data or stored.read(_BLOCK_BYTES):
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(stored_block)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
        if not frame.eof:  # which the library's own reader would not report
            raise EOFError("the file ends in the middle of a frame")

    return nullcontext(_lines(blocks()))


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


_OPENERS: dict[str, Callable[[IO[bytes]], AbstractContextManager[Iterable[bytes]]]] = {
    ".jsonl": nullcontext,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
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
        size = path.stat().st_size
        with path.open("rb") as stored, _OPENERS[path.suffix](stored) as file:
            for number, line in enumerate(file, start=1):
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
