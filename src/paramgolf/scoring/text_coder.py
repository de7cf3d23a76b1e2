"""Lossless compression of text: the artifact's predictions drive a range coder."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.compress.entropy import Decoder, Encoder
from paramgolf.data.documents import text_digest
from paramgolf.errors import UserError
from paramgolf.runtime.device import Runtime
from paramgolf.scoring.coded_text import Coded, code_tokens
from paramgolf.scoring.predictor import Predictor, load_on

MAGIC, VERSION = b"PARATEXT", 3
_HEADER = struct.Struct("<8sIIIIQQ32s32s")
_CHECKSUM = struct.Struct("<I")  # CRC-32 of header and stream, between the two
MAX_LANES = 64
"""Windows coded side by side. An extra lane costs one token coded without a prediction."""
_LANE_TARGETS = 1024
"""A lane has at least as many: then that token costs little, in a well-predicted text too."""

Progress = Callable[[int, int], None]


class CodedText(NamedTuple):
    """A compressed text."""

    content: bytes
    """Of the file: header and stream."""
    stream_bytes: int
    text_bytes: int
    heads: NDArray[np.int64]
    """Positions of the tokens that are coded without a prediction: each takes log2(V) bits."""


class TextCoder:
    """Compresses and decompresses text with an artifact."""

    def __init__(self, artifact: Path, tokenizer: Path | None, runtime: Runtime) -> None:
        """Load the artifact. In plain PyTorch, since text is coded token by token.

        Raises:
            UserError: see `scoring.predictor.load`.
        """
        self._predictor: Predictor = load_on(
            artifact, tokenizer, replace(runtime, accelerated=False)
        )
        self._sha256 = hashlib.sha256(artifact.read_bytes()).digest()

    def compress(
        self,
        texts: Sequence[str],
        stride: int = 0,
        fixed: bool = True,
        progress: Progress | None = None,
        tokens: NDArray[np.uint16] | None = None,
        of_targets: int = 0,
    ) -> CodedText:
        """Compress the documents of a text.

        Args:
            texts: documents that the tokenizer restores from their tokens.
            stride: of sliding windows, coded one after the other (slow); 0: consecutive windows.
            fixed: do not learn from the text, even if the recipe does.
            progress: called with the number of tokens coded and the total.
            tokens: (N + 1,) those of the text; None: the tokenizer's.
            of_targets: targets of the text that this is the beginning of, since learning follows a
                schedule over the whole text; 0: this is all of it.

        Raises:
            UserError: if the text does not survive the tokenizer, or the stride is invalid.
        """
        tokenizer = self._predictor.tokenizer
        if tokens is None:
            tokens = np.concatenate(tokenizer.encode(texts))
        if tokenizer.decode_documents(tokens) != list(texts):
            raise UserError(
                "the tokenizer does not reproduce this text (it normalises, or has no piece for a "
                "character): it cannot be compressed without loss"
            )
        encoder = Encoder()
        count = len(tokens) - 1
        total = of_targets or count
        lanes = 1 if stride else min(MAX_LANES, max(1, count // _LANE_TARGETS))
        known = tokens.astype(np.int32)
        coded = self._code(encoder, count, total, stride, lanes, fixed, known, progress)
        shape = (stride, lanes, int(fixed), count, total)
        header = _HEADER.pack(MAGIC, VERSION, *shape, self._sha256, text_digest(texts))
        stream = encoder.content()
        checksum = _CHECKSUM.pack(zlib.crc32(header + stream))
        size = sum(len(text.encode()) for text in texts)
        return CodedText(header + checksum + stream, len(stream), size, coded.heads)

    def decompress(self, content: bytes, name: str, progress: Progress | None = None) -> list[str]:
        """Return the documents of a compressed file, which errors call `name`.

        Raises:
            UserError: if the file has another format, version or artifact, is damaged, or was
                written by a machine that computes differently.
        """
        begin = _HEADER.size + _CHECKSUM.size
        if len(content) < begin or not content.startswith(MAGIC):
            raise UserError(f"{name} is not a text compressed by paramgolf")
        _, version, stride, lanes, fixed, count, total, artifact, digest = _HEADER.unpack_from(
            content
        )
        (checksum,) = _CHECKSUM.unpack_from(content, _HEADER.size)
        stream = content[begin:]
        if version != VERSION:
            raise UserError(f"{name} has version {version}; this paramgolf reads {VERSION}")
        # No symbol takes less than 2^-16 bits, which bounds the number of tokens in a stream.
        possible = 0 < lanes <= MAX_LANES and count <= min(total, (8 * len(stream) + 64) << 16)
        if zlib.crc32(content[: _HEADER.size] + stream) != checksum or not possible:
            raise UserError(f"{name} is damaged: its checksum does not match")
        if artifact != self._sha256:
            raise UserError(
                f"{name} was compressed with another artifact: SHA-256 {artifact.hex()[:16]} "
                f"instead of {self._sha256.hex()[:16]}"
            )
        try:
            decoder = Decoder(stream)
            lanes = 1 if stride else lanes  # older versions wrote 64
            coded = self._code(decoder, count, total, stride, lanes, bool(fixed), None, progress)
            decoder.finish()
            tokens = coded.tokens
            texts = self._predictor.tokenizer.decode_documents(tokens.astype(np.uint16))
            same = text_digest(texts) == digest
        except ValueError:
            texts, same = [], False
        if not same:
            raise UserError(
                f"{name} cannot be decompressed here: this machine computes differently from the "
                "one that wrote it (processor or GPU, number of threads, version of PyTorch)"
            )
        return texts

    def _code(
        self,
        coder: Encoder | Decoder,
        count: int,
        of_targets: int,
        stride: int,
        lanes: int,
        fixed: bool,
        known: np.ndarray | None,
        progress: Progress | None,
    ) -> Coded:
        predictor = self._predictor
        return code_tokens(
            predictor.model,
            predictor.order,
            coder,
            predictor.windows(count, stride),
            predictor.tokenizer.bos,
            count,
            known,
            lanes,
            predictor.learning(fixed),
            of_targets,
            progress,
        )
