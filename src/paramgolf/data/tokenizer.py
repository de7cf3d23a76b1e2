"""SentencePiece, with the exact number of UTF-8 bytes that each token stands for."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from paramgolf.data.caseops import ESCAPE, OPERATORS, from_caseops, to_caseops
from paramgolf.errors import UserError

PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece


class Tokenizer:
    """A SentencePiece model and its byte table.

    Attributes:
        case_ops: whether the operators of `data.caseops` are among its user-defined pieces. It then
            encodes what `to_caseops` makes of a text, and gives the text itself back.
        escape: the piece that is U+E004, where it is an operator; else no piece.
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        """Load a serialized SentencePiece model; `name` stands for it in errors.

        Raises:
            UserError: if it is no SentencePiece model or one whose bytes cannot be counted.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise UserError(f"{name} is not a SentencePiece model: {error}") from error
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = self._processor.vocab_size()
        if self.vocab_size > 65_536:
            raise UserError(
                f"{name} has {self.vocab_size} pieces; tokens are uint16: at most 65536"
            )
        if self._processor.bos_id() < 0:
            raise UserError(f"{name} has no BOS piece, which every document begins with")
        self.bos: int = self._processor.bos_id()
        self.case_ops = all(_is_user_defined(operator, model) for operator in OPERATORS)
        self.escape: int = self._processor.piece_to_id(ESCAPE) if self.case_ops else -1
        # A tokenizer that adds a leading space, or trims it, decodes the first piece without it.
        adds_space = self._processor.encode("x", out_type=str)[0].startswith(_SPACE)
        keeps_space = self._processor.decode(self._processor.encode(" x")) == " x"
        self._keeps_leading_space = keeps_space and not adds_space
        self._boundary = np.array([self._is_boundary(i) for i in range(self.vocab_size)])
        self._operator = np.array(
            [
                self.case_ops and self._processor.id_to_piece(i) in OPERATORS
                for i in range(self.vocab_size)
            ]
        )
        self._bytes, self._bytes_at_start = self._byte_tables(name)
        byte_pieces = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        # Where an added space would come between them, text cannot be encoded in parts.
        escapes = self._keeps_leading_space and all(map(self._processor.is_byte, byte_pieces))
        self._escaped_mark = byte_pieces if escapes else None

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a SentencePiece model file.

        Raises:
            UserError: if there is none, or it cannot be used.
        """
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error

    def _byte_tables(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bytes of every piece: after a text token, and after a boundary token."""
        processor = self._processor
        if processor.is_unknown(processor.piece_to_id(_SPACE)):
            raise UserError(f'{name} has no piece "{_SPACE}" (space); its bytes cannot be counted')
        num_bytes = np.zeros(self.vocab_size, dtype=np.int64)
        leading_space = np.zeros(self.vocab_size, dtype=np.int64)
        for token in range(self.vocab_size):
            if self._boundary[token]:
                continue
            piece = processor.id_to_piece(token)
            if processor.is_byte(token):
                num_bytes[token] = 1
            else:
                text = piece.replace(_SPACE, " ")
                if self.case_ops:
                    text = _without_operators(text, f"{name}, piece {token}")
                num_bytes[token] = len(text.encode())
                leading_space[token] = piece.startswith(_SPACE)
        if self._keeps_leading_space:
            return num_bytes, num_bytes
        return num_bytes, num_bytes - leading_space

    def _is_boundary(self, token: int) -> bool:
        processor = self._processor
        return (
            processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token)
        )

    def token_bytes(self, tokens: NDArray[np.uint16]) -> NDArray[np.int64]:
        """UTF-8 bytes that each target adds to the decoded text.

        Args:
            tokens: (N + 1,) token ids; targets are tokens[1:].

        Returns:
            (N,) bytes: 0 for control, unknown and unused pieces, 1 for a byte piece, else the
            UTF-8 length of the piece with spaces for U+2581. A leading space right after a
            boundary counts only if the tokenizer is one that keeps it there. Operators of CaseOps
            count 0, one that an escape makes a character of the text 3. Like the rest this holds of
            what `encode` gives, cut anywhere; byte pieces that spell an operator, which it never
            gives, count 1 each.
        """
        targets, previous = tokens[1:], tokens[:-1]
        starts = self._boundary[previous]
        counted = np.where(starts, self._bytes_at_start[targets], self._bytes[targets])
        escapes = tokens == self.escape
        if escapes.any():
            places = np.arange(len(tokens))
            run = places - np.maximum.accumulate(np.where(escapes, -1, places))
            # Escapes in a row escape each other: only behind an odd number is there one to come.
            literal = (run[:-1] % 2 == 1) & self._operator[targets]
            counted[literal] = len(ESCAPE.encode())
        return counted

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """Tokens of every text, each beginning with BOS; texts are shared out over all cores.

        A U+2581 in a text, which SentencePiece takes for a space, is written in byte pieces, so
        that it comes back (not by tokenizers that add a space in front of a text).

        Raises:
            UserError: if a text is no Unicode (it holds half of a surrogate pair).
        """
        mark = self._escaped_mark
        if self.case_ops:
            texts = [to_caseops(text) for text in texts]
        parts = [text.split(_SPACE) if mark else [text] for text in texts]
        try:
            # Arrays, since lists of Python's integers are made on one core.
            encoded = iter(
                self._processor.encode(
                    list(chain(*parts)), num_threads=os.cpu_count() or 1, return_type="numpy"
                )
            )
        except TypeError as error:
            raise UserError(f"the text is not valid Unicode: {error}") from error
        documents: list[NDArray[np.uint16]] = []
        for own in parts:
            pieces = [[self.bos], next(encoded)]
            for part in islice(encoded, len(own) - 1):
                pieces += [mark or [], part]
            documents.append(np.concatenate(pieces, dtype=np.uint16, casting="unsafe"))
        return documents

    @functools.cached_property
    def lossless(self) -> bool:
        """Whether texts come back; a tokenizer that normalises changes some."""
        probe = " \u00a0x  y\t\r\n\u2460\ufb01e\u0301\u3000\u200d "
        return self.decode_documents(self.encode([probe])[0]) == [probe]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a document's tokens; U+FFFD for bytes that are no character."""
        text = self._processor.decode(list(tokens))
        return from_caseops(text) if self.case_ops else text

    def decode_documents(self, tokens: NDArray[np.uint16]) -> list[str]:
        """Texts of the documents in a stream."""
        pieces = np.split(tokens, document_starts(tokens, self.bos)[1:])
        return [self.decode(piece.tolist()) for piece in pieces]


def document_starts(stream: NDArray[np.uint16], bos: int) -> NDArray[np.int64]:
    """(D,) where the documents of a stream begin: at every BOS; the first may lack its own."""
    return np.union1d([0], np.flatnonzero(stream == bos))


def _is_user_defined(piece: str, model: bytes) -> bool:
    """Whether a model has a piece of the type USER_DEFINED (4), which the library does not tell.

    The message of a piece is the string, the score as a float, the type.
    """
    content = piece.encode()
    message = b"\n%c%b(\x15.{4})?\x18\x04" % (len(content), re.escape(content))
    return re.search(message, model, re.DOTALL) is not None


def _without_operators(text: str, name: str) -> str:
    """What a piece of a CaseOps tokenizer writes, spaces before an operator, say.

    Raises:
        UserError: if it holds an operator in such a place that it may be escaped or escape others.
    """
    if len(text) > 1 and (ESCAPE in text or any(operator in text[:-1] for operator in OPERATORS)):
        raise UserError(f"{name} mixes an operator of CaseOps with text: its bytes are not certain")
    return text.rstrip(OPERATORS)
