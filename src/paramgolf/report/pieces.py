"""How the pieces of a tokenizer are written on a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

import sentencepiece

from paramgolf.data.caseops import CAPS, ESCAPE, NEXT, OPERATORS, TITLE, from_caseops

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

    def running(self, tokens: Iterable[int], case_ops: bool) -> Iterator[tuple[str, str, str]]:
        """Yield each token as part of running text: text, kind, and symbol of an operator.

        Args:
            tokens: consecutive tokens, which may arrive one by one.
            case_ops: whether the tokenizer has CaseOps; only then there are operators.
        """
        if case_ops:
            yield from self.with_capitals(tokens)
        else:
            for token in tokens:
                yield *self.in_text(token), ""

    def with_capitals(self, tokens: Iterable[int]) -> Iterator[tuple[str, str, str]]:
        """Yield text and kind of each token as `in_text`, and the symbol of an operator at its end.

        For a tokenizer with CaseOps: the text has the capitals that the operators before it mark.
        An operator is a token by itself, or the end of one with text before it.
        """
        operator = ""
        for token in tokens:
            piece = self._processor.id_to_piece(token)
            text, kind = self.in_text(token)
            mark = piece[-1] if piece[-1] in OPERATORS and operator != ESCAPE else ""
            if mark:
                text = text[:-1]
            if text and operator in (TITLE, NEXT, CAPS):
                letters = text.isascii() and text.isalpha() and kind == "text"
                if kind == "text":
                    text = from_caseops(operator + text)
                operator = operator if operator == CAPS and letters else ""
            elif text:
                operator = ""
            operator = mark or operator
            yield text, kind, _OPERATORS.get(mark, "")

    def alone(self, token: int) -> tuple[str, str]:
        """Return a token by itself, with its spaces made visible, and its kind."""
        text, kind = self.in_text(token)
        if kind in ("text", "break"):
            text = text.replace("\n", "").replace("\t", "").replace(" ", "\u2423")
        if kind == "byte":
            character = chr(int(text, 16))
            text = f"0x{text}" + (f" {character}" if "!" <= character <= "~" else "")
        return text, kind


def visible_text(text: str) -> str:
    """Return a text with U+FFFD for every invisible character but line breaks and tabs."""
    return "".join(
        "\ufffd"
        if unicodedata.category(character)[0] == "C" and character not in "\n\t"
        else character
        for character in text
    )


def _visible(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    if character in _OPERATORS:
        return _OPERATORS[character]
    if unicodedata.category(character)[0] == "C":
        return f"U+{ord(character):04X}"
    return character
