"""The proof of a score: encode a text with the artifact's predictions, and decode it elsewhere.

The decoding process gets the artifact, the tokenizer and the stream, and nothing else. A predictor
that peeks ahead, does not normalise or scores twice has a score that no stream can reach.
"""

from __future__ import annotations

import lzma
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from paramgolf.data.documents import read_text
from paramgolf.data.prepared import PreparedText
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.rundir import CODE_NAME, RunDir
from paramgolf.scoring.modes import score_modes
from paramgolf.scoring.predictor import load_on
from paramgolf.scoring.text_coder import CodedText, TextCoder

_MAX_EXCESS_SHARE, _MAX_EXCESS_BYTES = 0.001, 64


@dataclass(frozen=True)
class Proof:
    """The outcome of encoding and decoding a text."""

    mode: str
    """How the text was scored and coded: a name of `scoring.modes.ScoreMode`."""
    label: str
    """The score's label."""
    text_bytes: int
    claimed_bpb: float
    claimed_bytes: float
    """Size of the text according to the score."""
    stream_bytes: int
    max_stream_bytes: float
    """0.1 % and 64 bytes more than claimed."""
    failure: str
    """Why the other process did not write the same bytes; empty if it did."""
    encode_seconds: float
    decode_seconds: float
    """Of the whole process."""
    xz_bytes: int
    """`xz -9` of the same text, for comparison."""
    two_part_bytes: int
    """Stream, artifact, tokenizer and, for a run, code."""

    @property
    def holds(self) -> bool:
        """Whether the score is proven."""
        return not self.failure and self.stream_bytes <= self.max_stream_bytes


def prove(
    path: Path,
    text: Path | None,
    mode: Literal["plain", "sliding", "score-first"],
    max_bytes: int,
    runtime: Runtime,
    reporter: Reporter,
) -> Proof:
    """Prove the score of a text.

    Args:
        path: a run directory, or an artifact with its tokenizer in the same folder.
        text: a UTF-8 file; None: the validation text of the run.
        mode: consecutive windows, sliding windows with the recipe's stride, or these with learning.
        max_bytes: use only the beginning of the text; 0: all of it.
        runtime: where both sides compute.
        reporter: the console.

    Raises:
        UserError: if the artifact or the text does not exist.
        ConfigError: if the artifact's recipe does not learn while it scores, but the mode does.
    """
    artifact = path / "model.bin" if path.is_dir() else path
    predictor = load_on(artifact, None, runtime)
    modes = score_modes(predictor.artifact.stride, predictor.artifact.score_first.learns)
    chosen = next((known for known in modes if known.name == mode), None)
    if chosen is None:
        raise ConfigError(f"--mode {mode}: the artifact's recipe does not learn while it scores")
    texts = beginning([read_text(text)] if text else _scored_documents(path), max_bytes)
    content = "".join(texts).encode()
    tokens = np.concatenate(predictor.tokenizer.encode(texts))
    progress = reporter.progress("score", unit="targets")
    score = predictor.score_stream(
        tokens, texts, chosen.stride, progress=progress.update, fixed=chosen.fixed
    )
    claimed = score.loss_nats * score.tokens / math.log(2) / 8
    start = time.monotonic()
    progress = reporter.progress("encode", unit="tokens")
    coder = TextCoder(artifact, None, runtime)
    coded = coder.compress(texts, chosen.stride, chosen.fixed, progress.update)
    encoded = time.monotonic()
    reporter.line(f"  encoded   {coded.stream_bytes:,} bytes; decoding in another process")
    failure = _decoding_failure(artifact, coded, content, runtime)
    decoded = time.monotonic()
    files = [artifact.with_name(name) for name in (artifact.name, "tokenizer.model", CODE_NAME)]
    return Proof(
        mode=mode,
        label=score.label,
        text_bytes=coded.text_bytes,
        claimed_bpb=score.bpb,
        claimed_bytes=claimed,
        stream_bytes=coded.stream_bytes,
        max_stream_bytes=claimed * (1 + _MAX_EXCESS_SHARE) + _MAX_EXCESS_BYTES,
        failure=failure,
        encode_seconds=encoded - start,
        decode_seconds=decoded - encoded,
        xz_bytes=len(lzma.compress(content, preset=9)),
        two_part_bytes=coded.stream_bytes + sum(f.stat().st_size for f in files if f.exists()),
    )


def beginning(texts: Sequence[str], max_bytes: int) -> list[str]:
    """Return the first `max_bytes` bytes of the documents, the last one cut; 0: all of them."""
    if not max_bytes:
        return list(texts)
    kept: list[str] = []
    for text in texts:
        content = text.encode()[:max_bytes]
        max_bytes -= len(content)
        kept.append(content.decode(errors="ignore"))
        if max_bytes <= 0:
            break
    return kept


def _scored_documents(path: Path) -> list[str]:
    if not path.is_dir():
        raise ConfigError("name the text whose score to prove: --text FILE")
    run, _, _ = RunDir.open(path)
    stream = PreparedText.of(run).stream("val", run.data)
    return Tokenizer.load(run.tokenizer).decode_documents(stream)


def _decoding_failure(artifact: Path, coded: CodedText, content: bytes, runtime: Runtime) -> str:
    """Decode in another process; return why it did not restore the text, or an empty string."""
    with tempfile.TemporaryDirectory(prefix="paramgolf-proof-") as name:
        folder = Path(name)
        for file in (artifact, artifact.with_name("tokenizer.model")):
            shutil.copyfile(file, folder / file.name)
        (folder / "stream").write_bytes(coded.content)
        command = [sys.executable, "-m", "paramgolf", "decompress", artifact.name, "stream"]
        command += ["--out", "text", "--device", runtime.device.type]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            return ended.stderr.strip() or f"it ended with exit status {ended.returncode}"
        same = (folder / "text").read_bytes() == content
    return "" if same else "it wrote a different text"
