"""A foreign SentencePiece model, checked before the library, which is native code, may use it.

The file is read as a protocol buffer by a reader of its own, which refuses what the library would
skip, merge or read out of bounds. Then another process, with limits of memory and time, tries it.
"""

from __future__ import annotations

import functools
import math
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from paramgolf.errors import UserError

MAX_BYTES = 16 << 20
MAX_PIECES = 65_536
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces."""

_SECONDS = 20
_TRIAL = """import resource,sys
for kind,limit in(resource.RLIMIT_CORE,0),(resource.RLIMIT_CPU,10),(resource.RLIMIT_AS,1<<30):
 try:resource.setrlimit(kind,(limit,limit))
 except(OSError,ValueError):pass
sys.path[:]=sys.argv[1:]
from sentencepiece import SentencePieceProcessor
try:
 model=SentencePieceProcessor(model_proto=sys.stdin.buffer.read())
 text=" \\ta  Ab\\n\\xe9e\\u0301 \\ufb01\\u4e2d\\u6587\\u2581\\U0001f600\\ue001\\0 12"*9
 model.decode(model.encode(text))
 for i in range(model.vocab_size()):model.id_to_piece(i);model.decode([i])
except(Exception,MemoryError)as error:sys.exit(str(error)or type(error).__name__)
"""

_PIECE = {1: str, 2: float, 3: int}
_NORMALIZER = {1: str, 2: bytes, 3: int, 4: int, 5: int, 6: bytes}
_MODEL = {1: bytes, 2: bytes, 3: bytes, 4: bytes, 5: bytes}
"""Types of the fields of a message, by number: a model's pieces, specification of its trainer,
normaliser, tests and denormaliser."""
_WIRE_TYPES = {int: 0, str: 2, bytes: 2, float: 5}


class Piece(NamedTuple):
    """A piece of a vocabulary."""

    text: str
    score: float
    type: int


class Normalizer(NamedTuple):
    """What a model does to a text before it looks for pieces, or after it has joined them."""

    name: str
    charsmap: bytes
    """The compiled rule: a trie of what to replace, and the replacements. Empty: none."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


class SentencePieceModel(NamedTuple):
    """The content of a SentencePiece model."""

    pieces: list[Piece]
    normalizer: Normalizer
    denormalizer: Normalizer | None
    """None: the model has none."""


@functools.lru_cache(maxsize=4)
def check_tokenizer(model: bytes, name: str = "tokenizer") -> SentencePieceModel:
    """Parse a serialized SentencePiece model and try it in another process, once per process.

    Raises:
        UserError: naming the tokenizer `name`, if it is malformed, or the library fails, crashes,
            or takes more than 20 s or 1 GiB.
    """
    parsed = parse_model(model, name)
    command = [sys.executable, "-I", "-c", _TRIAL, *filter(None, sys.path)]
    try:
        trial = subprocess.run(
            command, input=model, capture_output=True, timeout=_SECONDS, check=False
        )
        reason = trial.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        if trial.returncode < 0:
            reason = f"the library crashes with it (signal {-trial.returncode})"
        failed = trial.returncode != 0
    except subprocess.TimeoutExpired:
        failed, reason = True, f"the library does not finish with it in {_SECONDS} s"
    if failed:
        raise UserError(f"{name} is not a SentencePiece model: {reason}")
    return parsed


def parse_model(model: bytes, name: str = "tokenizer") -> SentencePieceModel:
    """Parse a serialized SentencePiece model.

    Raises:
        UserError: naming the tokenizer `name`, if it is not exactly a model as the library writes
            it: an unknown or repeated field, a piece that is empty, repeated or not UTF-8, a score
            that is not finite, a normaliser whose trie points out of itself.
    """
    try:
        if len(model) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        pieces: list[Piece] = []
        rest: list[tuple[int, int, Any]] = []
        for field in _fields(model):
            if field[:2] != (1, 2):
                rest.append(field)
            elif len(pieces) == MAX_PIECES:
                raise ValueError(f"it has more than {MAX_PIECES} pieces (tokens are uint16)")
            else:
                pieces.append(_piece(field[2], f"piece {len(pieces)}"))
        if len({piece.text for piece in pieces}) < len(pieces):
            raise ValueError("two of its pieces are equal")
        specs = _message(rest, _MODEL, "it")
        denormalizer = _normalizer(specs[5]) if 5 in specs else None
        return SentencePieceModel(pieces, _normalizer(specs.get(3, b"")), denormalizer)
    except ValueError as error:
        raise UserError(f"{name} is not a SentencePiece model: {error}") from error


def _piece(content: bytes, where: str) -> Piece:
    fields = _message(_fields(content), _PIECE, where)
    piece = Piece(fields.get(1, ""), fields.get(2, 0.0), fields.get(3, NORMAL))
    if not (piece.text and math.isfinite(piece.score) and NORMAL <= piece.type <= BYTE):
        raise ValueError(f"{where} is {piece[:]}")
    return piece


def _normalizer(content: bytes) -> Normalizer:
    fields = _message(_fields(content), _NORMALIZER, "its normaliser")
    charsmap = fields.get(2, b"")
    if charsmap:
        _check_charsmap(charsmap)
    return Normalizer(
        fields.get(1, ""), charsmap, bool(fields.get(3, True)), bool(fields.get(4, True))
    )


def _check_charsmap(charsmap: bytes) -> None:
    """Check that no text makes the library read beyond the trie or the replacements.

    The charsmap is the length of a double-array trie (uint32), the trie (uint32 units), and the
    replacements, each with a zero byte at its end. From unit i, the byte b leads to the unit
    i XOR offset XOR b; a unit with bit 31 is a value, the place of a replacement.
    """
    damaged = ValueError("the rule of its normaliser is damaged")
    size = int.from_bytes(charsmap[:4], "little")
    replacements = charsmap[4 + size :]
    if size % 1024 or not 0 < size < len(charsmap) - 4 or replacements[-1:] != b"\0":
        raise damaged
    units = np.frombuffer(charsmap, "<u4", size // 4, offset=4).astype(np.int64)
    is_value = units >> 31 == 1
    offsets = (units >> 10) << ((units & 512) >> 6)
    reached = (np.arange(len(units)) ^ offsets) | 255
    if (reached[~is_value] >= len(units)).any():
        raise damaged
    if (units[is_value] & 0x7FFFFFFF >= len(replacements)).any():
        raise damaged


def _message(
    fields: Iterable[tuple[int, int, Any]], types: dict[int, type], where: str
) -> dict[int, Any]:
    """Return the fields of a message by number; each occurs at most once."""
    found: dict[int, Any] = {}
    for number, wire_type, value in fields:
        kind = types.get(number)
        if kind is None or wire_type != _WIRE_TYPES[kind] or number in found:
            raise ValueError(f"field {number} of {where} is repeated, unknown or of another type")
        if kind is str:
            value = value.decode()
        elif kind is float:
            (value,) = struct.unpack("<f", value)
        found[number] = value
    return found


def _fields(content: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and value of the fields of a message: an integer, or bytes."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        wire_type = key & 7
        value, size = b"", {1: 8, 5: 4}.get(wire_type, 0)
        if wire_type in (0, 2):
            size, position = _varint(content, position)
            value = size
        if wire_type:
            value = content[position : position + size]
            if len(value) < size or wire_type not in (1, 2, 5):
                raise ValueError("it is truncated or damaged")
            position += size
        yield key >> 3, wire_type, value


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Return the integer at a position, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("it is truncated or damaged")
