"""Any text as a small file, and back: the artifact's predictions drive an arithmetic coder."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paramgolf.compress.entropy import NOTHING, Decoder, Encoder
from paramgolf.errors import UserError
from paramgolf.runtime import Runtime
from paramgolf.scoring.coded_text import code_tokens
from paramgolf.scoring.predictor import Predictor, load_on
from paramgolf.scoring.windows import Windows, plain_windows, sliding_windows

MAGIC, VERSION = b"PARATEXT", 1
_HEADER = struct.Struct("<8sIIIQ32s32s")
_CHECKSUM = struct.Struct("<I")  # CRC-32 of header and stream, between the two
MOST_LANES = 64
"""Windows side by side: what a lane costs, some bits, is little against a window of text."""

Progress = Callable[[int, int], None]


class CodedText(NamedTuple):
    """A compressed text: the file, and the sizes of the coded stream in it and of the text."""

    content: bytes
    stream_bytes: int
    text_bytes: int


class TextCoder:
    """An artifact as both sides of a text's coding."""

    def __init__(self, artifact: Path, tokenizer: Path | None, runtime: Runtime) -> None:
        """Load the artifact; nothing is compiled, since text comes token by token.

        Raises:
            UserError: see `scoring.predictor.load`.
        """
        self._predictor: Predictor = load_on(artifact, tokenizer, replace(runtime, compiled=False))
        self._sha256 = hashlib.sha256(artifact.read_bytes()).digest()

    def compress(self, text: str, stride: int = 0, progress: Progress | None = None) -> CodedText:
        """Code a text.

        Args:
            text: any that the tokenizer gives back.
            stride: of sliding windows, slow and one after the other; 0: consecutive windows.
            progress: called with the number of tokens coded and of all.

        Raises:
            UserError: if the tokenizer does not give the text back, or the stride is not possible.
        """
        tokenizer = self._predictor.tokenizer
        tokens = tokenizer.encode([text])[0].astype(np.int32)
        if tokenizer.decode(tokens[1:].tolist()) != text:
            raise UserError(
                "the tokenizer does not give this text back (it normalises, or has no piece for a "
                "character): it cannot be compressed without loss"
            )
        encoder = Encoder()
        self._code(encoder, len(tokens) - 1, stride, tokens, progress)
        content = text.encode()
        digest = hashlib.sha256(content).digest()
        count = len(tokens) - 1
        header = _HEADER.pack(MAGIC, VERSION, stride, MOST_LANES, count, self._sha256, digest)
        stream = encoder.content()
        checksum = _CHECKSUM.pack(zlib.crc32(header + stream))
        return CodedText(header + checksum + stream, len(stream), len(content))

    def decompress(self, content: bytes, name: str, progress: Progress | None = None) -> str:
        """The text of a coded file; `name` stands for it in errors.

        Raises:
            UserError: if it is none, of another version or artifact, damaged, or was written by a
                machine that computes differently.
        """
        begin = _HEADER.size + _CHECKSUM.size
        if len(content) < begin or not content.startswith(MAGIC):
            raise UserError(f"{name} is not a text that paramgolf has compressed")
        _, version, stride, lanes, count, artifact, digest = _HEADER.unpack_from(content)
        (checksum,) = _CHECKSUM.unpack_from(content, _HEADER.size)
        stream = content[begin:]
        if version != VERSION:
            raise UserError(f"{name} has version {version}; this paramgolf reads {VERSION}")
        # No symbol takes less than 2^-16 bits: what claims more of them is no text.
        possible = lanes == MOST_LANES and count <= (8 * len(stream) + 64) << 16
        if zlib.crc32(content[: _HEADER.size] + stream) != checksum or not possible:
            raise UserError(f"{name} is damaged: its checksum does not match")
        if artifact != self._sha256:
            raise UserError(
                f"{name} was compressed with another artifact: SHA-256 {artifact.hex()[:16]} "
                f"instead of {self._sha256.hex()[:16]}"
            )
        try:
            decoder = Decoder(stream)
            tokens = self._code(decoder, count, stride, NOTHING, progress)
            decoder.finish()
            text = self._predictor.tokenizer.decode(tokens[1:].tolist())
            same = hashlib.sha256(text.encode()).digest() == digest
        except ValueError:
            text, same = "", False
        if not same:
            raise UserError(
                f"{name} does not give its text back: this machine computes differently from the "
                "one that wrote it (processor, number of threads, version of PyTorch)"
            )
        return text

    def _code(
        self,
        coder: Encoder | Decoder,
        count: int,
        stride: int,
        known: np.ndarray,
        progress: Progress | None,
    ) -> np.ndarray:
        predictor = self._predictor
        seq_len = predictor.artifact.model.seq_len
        if not 0 <= stride <= seq_len:
            raise UserError(f"stride = {stride} is not possible: it must be 0 to {seq_len}")
        windows: list[Windows] = (
            sliding_windows(count, seq_len, stride) if stride else plain_windows(count, seq_len)
        )
        lanes = 1 if stride else MOST_LANES
        first = predictor.tokenizer.bos
        return code_tokens(
            predictor.model, predictor.order, coder, windows, first, count, known, lanes, progress
        )
