"""The proof of a score: a text through the artifact's predictions into a stream, and back.

Another process gets the artifact, the tokenizer and the stream, and nothing else. A predictor that
peeks, does not normalise or scores twice has a score that no stream can reach.
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
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.predictor import load_on
from paramgolf.scoring.text_coder import CodedText, TextCoder

Way = Literal["plain", "sliding", "score-first"]
_SHARE_OVER, _BYTES_OVER = 0.001, 64


@dataclass(frozen=True)
class Proof:
    """What coding a text and bringing it back has shown."""

    way: Way
    label: str
    """Of the score."""
    text_bytes: int
    claimed_bpb: float
    claimed_bytes: float
    """What the score says that the text takes."""
    stream_bytes: int
    max_stream_bytes: float
    """0.1 % and 64 bytes over the claim."""
    came_back: bool
    """The other process wrote the same bytes."""
    why_not: str
    encode_seconds: float
    decode_seconds: float
    """Of the whole process."""
    xz_bytes: int
    """`xz -9` of the same text, for scale."""
    two_part_bytes: int
    """Stream, artifact, tokenizer and, where there is a run, code."""

    @property
    def holds(self) -> bool:
        """Whether the score is proven."""
        return self.came_back and self.stream_bytes <= self.max_stream_bytes


def prove(
    path: Path, text: Path | None, way: Way, max_bytes: int, runtime: Runtime, reporter: Reporter
) -> Proof:
    """Prove the score of a text.

    Args:
        path: a run's directory, or an artifact with its tokenizer beside it.
        text: a UTF-8 file; None: the validation text of the run.
        way: windows as the score has them: one after the other, sliding with the recipe's stride,
            or these with learning.
        max_bytes: only the beginning of the text; 0: all of it.
        runtime: where both sides compute.
        reporter: the console.

    Raises:
        UserError: if there is no such artifact or text.
        ConfigError: if the artifact's recipe does not learn while it scores.
    """
    artifact = path / "model.bin" if path.is_dir() else path
    predictor = load_on(artifact, None, runtime)
    fixed = way != "score-first"
    if not fixed and not predictor.artifact.score_first.learns:
        raise ConfigError("--way score-first: the artifact's recipe does not learn while it scores")
    stride = 0 if way == "plain" else predictor.artifact.stride
    texts = beginning([read_text(text)] if text else _scored_documents(path), max_bytes)
    stream = np.concatenate(predictor.tokenizer.encode(texts))
    progress = reporter.progress("score", unit="targets")
    score = predictor.score_stream(stream, texts, stride, progress=progress.update, fixed=fixed)
    claimed = score.loss_nats * score.tokens / math.log(2) / 8
    start = time.monotonic()
    progress = reporter.progress("encode", unit="tokens")
    coder = TextCoder(artifact, None, runtime)
    coded = coder.compress(texts, stride, fixed, progress.update)
    middle = time.monotonic()
    content = "".join(texts).encode()
    reporter.line(f"  encoded   {coded.stream_bytes:,} bytes; another process decodes")
    why_not = _decoded_elsewhere(artifact, coded, content, runtime)
    end = time.monotonic()
    beside = [artifact, artifact.with_name("tokenizer.model"), artifact.with_name("train_gpt.py")]
    parts = sum(file.stat().st_size for file in beside if file.exists())
    return Proof(
        way=way,
        label=score.label,
        text_bytes=coded.text_bytes,
        claimed_bpb=score.bpb,
        claimed_bytes=claimed,
        stream_bytes=coded.stream_bytes,
        max_stream_bytes=claimed * (1 + _SHARE_OVER) + _BYTES_OVER,
        came_back=not why_not,
        why_not=why_not,
        encode_seconds=middle - start,
        decode_seconds=end - middle,
        xz_bytes=len(lzma.compress(content, preset=9)),
        two_part_bytes=parts + coded.stream_bytes,
    )


def beginning(texts: Sequence[str], max_bytes: int) -> list[str]:
    """The first documents of at most so many bytes in all, the last one cut; 0: all of them."""
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
        raise ConfigError("name the text to prove the score of: --text FILE")
    run, _, _ = RunDir.open(path)
    stream = PreparedText.of(run).stream("val", run.data)
    return Tokenizer.load(run.tokenizer).decode_documents(stream)


def _decoded_elsewhere(artifact: Path, coded: CodedText, content: bytes, runtime: Runtime) -> str:
    """Why another process did not give the text back; empty if it did."""
    with tempfile.TemporaryDirectory(prefix="paramgolf-proof-") as name:
        folder = Path(name)
        for file in (artifact, artifact.with_name("tokenizer.model")):
            shutil.copyfile(file, folder / file.name)
        (folder / "stream").write_bytes(coded.content)
        command = [sys.executable, "-m", "paramgolf", "decompress", artifact.name, "stream"]
        command += ["--out", "text", "--device", runtime.device.type]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            return ended.stderr.strip() or f"it ended with code {ended.returncode}"
        same = (folder / "text").read_bytes() == content
    return "" if same else "it wrote another text"
