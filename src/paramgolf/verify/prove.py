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

from torch import Tensor

from paramgolf.data.documents import read_text
from paramgolf.data.prepared import PreparedText
from paramgolf.data.streams import encoded
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.rundir import CODE_NAME, RunDir
from paramgolf.scoring.modes import score_modes
from paramgolf.scoring.predictor import load_on
from paramgolf.scoring.text_coder import CodedText, TextCoder

MAX_EXCESS_SHARE, MAX_EXCESS_BYTES = 0.001, 64
"""Beyond that: tensors of other shapes round differently, and the stream ends in whole words."""
_PRECISION_BITS = 24  # of the probabilities that the coder works with


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
    lanes: int
    """Parts of the text that are coded side by side."""
    lane_bytes: float
    """What they add to the claimed bytes: the first token of every lane but one is coded without a
    prediction, in log2(V) bits, and not as the score predicts it."""
    rounding_bytes: float
    """What the coder adds at most, since it gives every token a probability of 2^-24 or more."""
    max_stream_bytes: float
    """Claimed, lane and rounding bytes, and 0.1 % of the claimed and 64 bytes more."""
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
    artifact: Path,
    text: Path | None,
    mode: Literal["plain", "sliding", "score-first"],
    max_bytes: int,
    runtime: Runtime,
    reporter: Reporter,
) -> Proof:
    """Prove the score of a text.

    Args:
        artifact: model.bin, with its tokenizer in the same folder.
        text: a UTF-8 file; None: the validation text of the run in that folder.
        mode: consecutive windows, sliding windows with the recipe's stride, or these with learning.
        max_bytes: use only the beginning of the text; 0: all of it.
        runtime: where both sides compute.
        reporter: the console.

    Raises:
        UserError: if the artifact or the text does not exist, or the text is empty.
        ConfigError: if the artifact's recipe does not learn while it scores, but the mode does; if
            there is neither a text nor a run; if the first `max_bytes` contain no character.
    """
    predictor = load_on(artifact, None, runtime)
    modes = score_modes(predictor.artifact.stride, predictor.artifact.score_first.learns)
    chosen = next((known for known in modes if known.name == mode), None)
    if chosen is None:
        raise ConfigError(f"--mode {mode}: the artifact's recipe does not learn while it scores")
    documents = [read_text(text)] if text else _scored_documents(artifact.parent)
    texts = beginning(documents, max_bytes)
    if any(documents) and not any(texts):
        raise ConfigError(f"invalid --bytes = {max_bytes}: the first character is longer")
    content = "".join(texts).encode()
    tokens = encoded("the text", texts, predictor.tokenizer).tokens
    progress = reporter.progress("score", unit="targets")
    losses = predictor.losses(tokens, chosen.stride, progress=progress.update, fixed=chosen.fixed)
    score = predictor.score_of(losses, tokens, texts, chosen.fixed)
    claimed = score.loss_nats * score.tokens / math.log(2) / 8
    start = time.monotonic()
    progress = reporter.progress("encode", unit="tokens")
    coder = TextCoder(artifact, None, runtime)
    coded = coder.compress(texts, chosen.stride, chosen.fixed, progress.update)
    coded_at = time.monotonic()
    reporter.line(f"  encoded   {coded.stream_bytes:,} bytes; decoding in another process")
    failure = _decoding_failure(artifact, coded, content, runtime)
    decoded_at = time.monotonic()
    lane_bytes, rounding_bytes = _overhead(losses, coded, predictor.tokenizer.vocab_size)
    excess = claimed * MAX_EXCESS_SHARE + MAX_EXCESS_BYTES
    files = [artifact.with_name(name) for name in (artifact.name, "tokenizer.model", CODE_NAME)]
    return Proof(
        mode=mode,
        label=score.label,
        text_bytes=coded.text_bytes,
        claimed_bpb=score.bpb,
        claimed_bytes=claimed,
        stream_bytes=coded.stream_bytes,
        lanes=len(coded.heads) + 1,
        lane_bytes=lane_bytes,
        rounding_bytes=rounding_bytes,
        max_stream_bytes=claimed + lane_bytes + rounding_bytes + excess,
        failure=failure,
        encode_seconds=coded_at - start,
        decode_seconds=decoded_at - coded_at,
        xz_bytes=len(lzma.compress(content, preset=9)),
        two_part_bytes=coded.stream_bytes + sum(f.stat().st_size for f in files if f.exists()),
    )


def _overhead(losses_N: Tensor, coded: CodedText, vocab_size: int) -> tuple[float, float]:
    """Return `Proof.lane_bytes` and `Proof.rounding_bytes`."""
    of_heads = float(losses_N.double()[coded.heads - 1].sum()) / math.log(2)
    lane_bytes = (len(coded.heads) * math.log2(vocab_size) - of_heads) / 8
    rounding_bytes = -len(losses_N) * math.log2(1 - vocab_size / 2**_PRECISION_BITS) / 8
    return lane_bytes, rounding_bytes


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


def _scored_documents(folder: Path) -> list[str]:
    if not RunDir(folder).config_file.exists():
        raise ConfigError("name the text whose score to prove: --text FILE")
    run, _, _ = RunDir.open(folder)
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
