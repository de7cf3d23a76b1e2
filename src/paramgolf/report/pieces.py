"""How the pieces of a tokenizer are written on a page."""

from __future__ import annotations

import unicodedata

import sentencepiece

from paramgolf.data.caseops import CAPS, ESCAPE, NEXT, TITLE

_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
_VISIBLE = {"\n": "\u21b5\n", "\t": "\u21e5\t"}
_OPERATORS = {TITLE: "\u21e7", NEXT: "\u21e7", CAPS: "\u21ea", ESCAPE: "\u238b"}
"""Symbols for the operators of CaseOps: one capital, all capitals, a literal operator."""


class Pieces:
    """The pieces of a tokenizer as text that can be read."""

    def __init__(self, model: bytes) -> None:
        """Read a serialized SentencePiece model."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def in_text(self, token: int) -> tuple[str, str]:
        """Return a token as part of running text, and its kind: "text", "break", "byte" or "mark".

        Line breaks and tabs are kept and also shown as symbols. Invisible characters are written
        as U+ and their number, bytes in hexadecimal.
        """
        processor = self._processor
        if processor.is_byte(token):
            byte = int(processor.id_to_piece(token)[1:-1], 16)
            character = chr(byte)
            if character in _VISIBLE:
                return _VISIBLE[character], "break"
            return f"{byte:02X}", "byte"
        if token == processor.bos_id():
            return "next document", "mark"
        if processor.is_control(token) or processor.is_unknown(token):
            return processor.id_to_piece(token).strip("<>"), "mark"
        text = processor.id_to_piece(token).replace(_SPACE, " ")
        kind = "text" if set(text) - set(_VISIBLE) else "break"
        return "".join(map(_visible, text)), kind

    def alone(self, token: int) -> tuple[str, str]:
        """Return a token by itself, with its spaces made visible, and its kind."""
        text, kind = self.in_text(token)
        if kind in ("text", "break"):
            text = text.replace("\n", "").replace("\t", "").replace(" ", "\u2423")
        if kind == "byte":
            character = chr(int(text, 16))
            text = f"0x{text}" + (f" {character}" if "!" <= character <= "~" else "")
        return text, kind


def _visible(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    if character in _OPERATORS:
        return _OPERATORS[character]
    if unicodedata.category(character)[0] == "C":
        return f"U+{ord(character):04X}"
    return character
