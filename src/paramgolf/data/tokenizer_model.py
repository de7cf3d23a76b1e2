"""The content of a serialized SentencePiece model, read as a protocol buffer.

The library skips unknown fields and merges repeated ones; this reader refuses them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from paramgolf.errors import UserError

MAX_BYTES = 16 << 20
MAX_PIECES = 65_536
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces."""

_BPE = 2

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
    is_bpe: bool
    """Whether it joins neighbours (byte-pair encoding) instead of choosing likely pieces."""
    normalizer: Normalizer
    denormalizer: Normalizer | None
    """None: the model has none."""


def parse_model(model: bytes, name: str = "tokenizer") -> SentencePieceModel:
    """Parse a serialized SentencePiece model.

    Raises:
        UserError: naming the tokenizer `name`, if it is not exactly a model as the library writes
            it: an unknown or repeated field, a piece that is empty, repeated or not UTF-8, a score
            that is not finite.
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
        # Of what its trainer was told, field 3 is the kind of model.
        is_bpe = (3, 0, _BPE) in _fields(specs.get(2, b""))
        return SentencePieceModel(pieces, is_bpe, _normalizer(specs.get(3, b"")), denormalizer)
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
    return Normalizer(
        fields.get(1, ""),
        fields.get(2, b""),
        bool(fields.get(3, True)),
        bool(fields.get(4, True)),
    )


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
