"""SentencePiece tokenizers, and the exact number of UTF-8 bytes that each token represents."""

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
from paramgolf.data.shards import document_starts
from paramgolf.data.successors import impossible_successors
from paramgolf.data.tokenizer_model import MAX_BYTES, parse_model
from paramgolf.errors import UserError
from paramgolf.runtime.files import read_file

PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
RULES = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
"""SentencePiece's own rules of normalisation."""
_SPACE = "\u2581"  # what SentencePiece writes for a space inside a piece


class Tokenizer:
    """A SentencePiece model and the byte counts of its pieces.

    Attributes:
        model: the serialized SentencePiece model.
        sha256: of `model`.
        vocab_size: number of pieces.
        bos: the token that begins every document.
        case_ops: whether the operators of `data.caseops` are user-defined pieces of the model. If
            so, texts pass through `to_caseops` before encoding and `from_caseops` after decoding.
        escape: the token of the operator U+E004 with CaseOps, else -1.
        escaped_mark: the byte pieces that stand for a U+2581 of a text; None: it is not escaped.
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        """Load a serialized SentencePiece model; errors call it `name`.

        Raises:
            UserError: if it is not a SentencePiece model, or its bytes cannot be counted.
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
                f"{name} has {self.vocab_size} pieces: expected at most 65536 (tokens are uint16)"
            )
        if self._processor.bos_id() < 0:
            raise UserError(f"{name} has no BOS piece, with which every document begins")
        self.bos: int = self._processor.bos_id()
        self.case_ops = all(_is_user_defined(operator, model) for operator in OPERATORS)
        self.escape: int = self._processor.piece_to_id(ESCAPE) if self.case_ops else -1
        # Tokenizers that add a leading space, or trim one, decode the first piece without it.
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
        # Text can be encoded in parts only if no space is added in front of each part.
        escapes = self._keeps_leading_space and all(map(self._processor.is_byte, byte_pieces))
        self.escaped_mark = byte_pieces if escapes else None

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a SentencePiece model file, and check it first (`data.tokenizer_check`).

        Raises:
            UserError: if it cannot be read or used.
        """
        model = read_file(path, "the tokenizer", MAX_BYTES)
        try:
            from paramgolf.data.tokenizer_check import check_tokenizer
        except ModuleNotFoundError as error:  # the package checks what it gives to the code file
            if error.name != "paramgolf.data.tokenizer_check":
                raise
        else:
            check_tokenizer(model, str(path))
        return cls(model, str(path))

    def _byte_tables(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the bytes of each piece after a text token, and after a boundary token."""
        processor = self._processor
        if processor.is_unknown(processor.piece_to_id(_SPACE)):
            raise UserError(f'{name} has no piece "{_SPACE}" (space): its bytes cannot be counted')
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
        """Return the number of UTF-8 bytes that each target adds to the decoded text.

        Args:
            tokens: (N + 1,) token ids; the targets are tokens[1:].

        Returns:
            (N,) bytes: 0 for control, unknown and unused pieces, 1 for a byte piece, else the
            UTF-8 length of the piece with U+2581 as a space. A leading space after a boundary
            counts only if the tokenizer keeps it there. Operators of CaseOps count 0, but an
            escaped one, which is a character of the text, counts 3. All this is true of the output
            of `encode`, cut anywhere; byte pieces that spell an operator, which `encode` never
            returns, count 1 each.
        """
        targets, previous = tokens[1:], tokens[:-1]
        starts = self._boundary[previous]
        counted = np.where(starts, self._bytes_at_start[targets], self._bytes[targets])
        escapes = tokens == self.escape
        if escapes.any():
            places = np.arange(len(tokens))
            run = places - np.maximum.accumulate(np.where(escapes, -1, places))
            # Escapes in a row escape each other: only an odd number escapes what follows.
            literal = (run[:-1] % 2 == 1) & self._operator[targets]
            counted[literal] = len(ESCAPE.encode())
        return counted

    def long_piece_bytes(self, tokens: NDArray[np.uint16]) -> int:
        """Return how many bytes the long pieces among the targets add to the decoded text.

        A piece of more than three words or 24 characters is long: it holds text that a model is to
        predict.
        """
        texts = (
            self._processor.id_to_piece(i).replace(_SPACE, " ") for i in range(self.vocab_size)
        )
        is_long = np.array([len(text) > 24 or len(text.split()) > 3 for text in texts])
        return int(self.token_bytes(tokens)[is_long[tokens[1:]]].sum())

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint16]]:
        """Return the tokens of each text, beginning with BOS; uses all cores.

        A U+2581 in a text, which SentencePiece would decode as a space, is encoded as byte pieces,
        so that it is preserved (except by tokenizers that add a space in front of a text).

        Raises:
            UserError: if a text is not valid Unicode (it contains half of a surrogate pair).
        """
        mark = self.escaped_mark
        if self.case_ops:
            texts = [to_caseops(text) for text in texts]
        parts = [text.split(_SPACE) if mark else [text] for text in texts]
        try:
            # Arrays, because lists of Python integers would be built on one core.
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
        """Whether decoding restores every text.

        A tokenizer that normalises changes some, and so does one with unknown characters.
        """
        probe = " \u00a0x  y\t\r\n\u2460\ufb01e\u0301\u3000\u200d a\u2581b \U000e0fff "
        back = self.decode_documents(self.encode([probe])[0])
        return back == [probe] and self.rule == "identity"

    @functools.cached_property
    def impossible_successors(self) -> NDArray[np.bool_] | None:
        """Which pieces `encode` never puts behind which, (V, V); see `data.successors`."""
        return impossible_successors(self.model)

    def impossible_pairs(self, tokens: NDArray[np.uint16]) -> int:
        """Return how often a token follows one that it never follows."""
        impossible = self.impossible_successors
        return 0 if impossible is None else int(impossible[tokens[:-1], tokens[1:]].sum())

    @functools.cached_property
    def rule(self) -> str:
        """Which of `RULES` the model normalises by, byte for byte; "" for any other rule."""
        own = parse_model(self.model)
        if own.denormalizer and own.denormalizer.charsmap:
            return ""
        for name in RULES:
            library = sentencepiece.SentencePieceNormalizer(rule_name=name)
            its = parse_model(library.serialized_model_proto())
            if own.normalizer.charsmap == its.normalizer.charsmap:
                return name
        return ""

    @property
    def form(self) -> str:
        """In which form a text comes back if not as it was: the rule, and whether spaces go."""
        collapses = parse_model(self.model).normalizer.remove_extra_whitespaces
        return self.rule + ", extra spaces removed" * collapses

    def normal_form(self, text: str) -> str:
        """Return a text as the model normalises it."""
        text = to_caseops(text) if self.case_ops else text
        normal = self._processor.normalize(text).replace(_SPACE, " ")
        if not self._keeps_leading_space:
            normal = normal.removeprefix(" ")
        return from_caseops(normal) if self.case_ops else normal

    def unknown(self, tokens: NDArray[np.uint16]) -> int:
        """Return how many of the tokens are unknown pieces."""
        return int((tokens == self._processor.unk_id()).sum())

    def silent(self, tokens: NDArray[np.uint16]) -> int:
        """Return how many of the tokens are control pieces other than BOS, or unused pieces.

        They count no bytes, although SentencePiece decodes an unused piece as its text.
        """
        counts_nothing = self._boundary[tokens] & (tokens != self.bos)
        return int(counts_nothing.sum()) - self.unknown(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of one document's tokens, with U+FFFD for invalid UTF-8."""
        text = self._processor.decode(list(tokens))
        return from_caseops(text) if self.case_ops else text

    def decode_documents(self, tokens: NDArray[np.uint16]) -> list[str]:
        """Return the texts of all documents in a stream."""
        pieces = np.split(tokens, document_starts(tokens, self.bos)[1:])
        return [self.decode(piece.tolist()) for piece in pieces]


def _is_user_defined(piece: str, model: bytes) -> bool:
    """Return whether a model has a piece of type USER_DEFINED (4); the library has no such query.

    The protobuf message of a piece is the string, the score as a float, and the type.
    """
    content = piece.encode()
    message = b"\n%c%b(\x15.{4})?\x18\x04" % (len(content), re.escape(content))
    return re.search(message, model, re.DOTALL) is not None


def _without_operators(text: str, name: str) -> str:
    """Return the text of a piece of a CaseOps tokenizer without operators at its end.

    Raises:
        UserError: if it contains an operator where it may be escaped or escape others.
    """
    if len(text) > 1 and (ESCAPE in text or any(operator in text[:-1] for operator in OPERATORS)):
        raise UserError(
            f"{name} mixes an operator of CaseOps with text: its bytes cannot be counted"
        )
    return text.rstrip(OPERATORS)
