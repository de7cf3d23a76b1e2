"""The proof of a score: encode a text with the artifact's predictions, and decode it elsewhere.

The decoding process gets the artifact, the tokenizer and the stream, and nothing else. A predictor
that peeks ahead, does not normalise or scores twice has a score that no stream can reach, and
neither can a score that was only written down: the stream is compared with the losses that the run
reports for the same documents.
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
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.data.documents import read_text
from paramgolf.data.prepared import PreparedText
from paramgolf.data.shards import document_starts
from paramgolf.data.streams import Stream, encoded, require_counted, require_restored
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.records import read_results
from paramgolf.runtime.rundir import CODE_NAME, RunDir
from paramgolf.scoring.bits_per_byte import label_of
from paramgolf.scoring.modes import ScoreMode, score_modes
from paramgolf.scoring.predictor import Predictor, load_on
from paramgolf.scoring.text_coder import CodedText, TextCoder
from paramgolf.verify.checks import other_sums

MAX_EXCESS_SHARE = 0.001
"""Tensors of other shapes round differently: the stream may exceed the claimed bytes by this."""
END_BYTES = 8
"""The range coder ends its stream with at most two words of 4 bytes."""
_PRECISION_BITS = 24  # of the probabilities that the coder works with


class Claim(NamedTuple):
    """What a run reports of the documents that are coded."""

    stage: str
    """The score's key under `stages` in results.json."""
    bpb: float
    """Of the whole text."""
    label: str
    nats: float
    """Loss of the coded documents together."""
    total_documents: int
    total_bytes: int
    """Of the whole text."""
    last: tuple[str, float]
    """Stage and BPB of the run's last score."""


class _Part(NamedTuple):
    """The documents to code."""

    tokens: NDArray[np.uint16]
    """(N + 1,)"""
    texts: list[str]
    """As decoded; the originals differ if the tokenizer normalises."""
    bytes: int
    """Of the originals."""
    of_targets: int
    """Targets of the whole text."""
    claim: Claim | None


@dataclass(frozen=True)
class Proof:
    """The outcome of encoding and decoding a text."""

    mode: str
    """How the text was scored and coded: a name of `scoring.modes.ScoreMode`."""
    claim: Claim | None
    """What the run reports; None: the text is not that of a run, and its score is computed here."""
    label: str
    """The score's label."""
    documents: int
    text_bytes: int
    """Of the coded documents."""
    decoded_bytes: int
    """What the other process writes: other bytes if the tokenizer normalises the text."""
    claimed_bpb: float
    """Of the coded documents."""
    claimed_bytes: float
    """Size of the coded documents according to their losses."""
    stream_bytes: int
    lanes: int
    """Parts of the text that are coded side by side."""
    lane_bytes: float
    """What they add to the claimed bytes: the first token of every lane but one is coded without a
    prediction, in log2(V) bits, and not as the score predicts it."""
    slack_bytes: float
    """What else the stream may take: 0.1 % of the claimed bytes, the coder's rounding (it gives
    every token a probability of 2^-24 or more), and the end of the stream."""
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
    def max_stream_bytes(self) -> float:
        """The largest stream that proves the claim."""
        return self.claimed_bytes + self.lane_bytes + self.slack_bytes

    @property
    def slack_bpb(self) -> float:
        """By how much a score could be too low and still be proven."""
        return 8 * self.slack_bytes / self.text_bytes

    @property
    def holds(self) -> bool:
        """Whether the score of the coded documents is proven."""
        return not self.failure and self.stream_bytes <= self.max_stream_bytes

    def objection(self) -> str:
        """Return why the score is not proven."""
        if self.failure:
            return f"the other process did not restore the text: {self.failure}"
        whose = "the score computed here claims"
        if self.claim is not None:
            whose = "the reported losses of these documents claim"
        return f"the stream takes {self.stream_bytes:,} bytes, {whose} {self.claimed_bytes:,.1f}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **vars(self),
            "claim": None if self.claim is None else self.claim._asdict(),
            "max_stream_bytes": self.max_stream_bytes,
            "slack_bpb": self.slack_bpb,
            "holds": self.holds,
        }


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
        text: a UTF-8 file, whose score is computed here; None: the validation text of the run in
            that folder, whose reported losses are proven.
        mode: consecutive windows, sliding windows with the recipe's stride, or these with learning.
        max_bytes: use only the beginning of the text; 0: all of it. Of a run's text, these are
            whole documents, at least one.
        runtime: where both sides compute.
        reporter: the console.

    Raises:
        UserError: if the artifact or the text does not exist, or the text is empty; if the run's
            results and its losses by document contradict each other.
        ConfigError: if the artifact's recipe does not learn while it scores, but the mode does; if
            there is neither a text nor a run; if the first `max_bytes` contain no character.
    """
    predictor = load_on(artifact, None, runtime)
    chosen = _chosen(predictor, mode)
    if text is None:
        part = _scored_part(artifact.parent, chosen, max_bytes)
    else:
        part = _part_of_file(text, predictor.tokenizer, max_bytes)
    content = "".join(part.texts).encode()
    start = time.monotonic()
    progress = reporter.progress("encode", unit="tokens")
    coder = TextCoder(artifact, None, runtime)
    coded = coder.compress(
        part.texts, chosen.stride, chosen.fixed, progress.update, part.tokens, part.of_targets
    )
    coded_at = time.monotonic()
    reporter.line(f"  encoded   {coded.stream_bytes:,} bytes; decoding in another process")
    failure = _decoding_failure(artifact, coded, content, runtime)
    decoded_at = time.monotonic()
    losses = None
    if part.claim is None or len(coded.heads):
        scored = reporter.progress("score", unit="targets").update
        losses = predictor.losses(part.tokens, chosen.stride, progress=scored, fixed=chosen.fixed)
    nats, label = _claimed(part, losses, predictor, chosen)
    claimed_bytes = nats / math.log(2) / 8
    lane_bytes, rounding_bytes = _overhead(
        losses, len(part.tokens) - 1, coded, predictor.tokenizer.vocab_size
    )
    files = [artifact.with_name(name) for name in (artifact.name, "tokenizer.model", CODE_NAME)]
    return Proof(
        mode=mode,
        claim=part.claim,
        label=label,
        documents=len(part.texts),
        text_bytes=part.bytes,
        decoded_bytes=len(content),
        claimed_bpb=8 * claimed_bytes / part.bytes,
        claimed_bytes=claimed_bytes,
        stream_bytes=coded.stream_bytes,
        lanes=len(coded.heads) + 1,
        lane_bytes=lane_bytes,
        slack_bytes=MAX_EXCESS_SHARE * claimed_bytes + rounding_bytes + END_BYTES,
        failure=failure,
        encode_seconds=coded_at - start,
        decode_seconds=decoded_at - coded_at,
        xz_bytes=len(lzma.compress(content, preset=9)),
        two_part_bytes=coded.stream_bytes + sum(f.stat().st_size for f in files if f.exists()),
    )


def _chosen(predictor: Predictor, name: str) -> ScoreMode:
    """Return the mode of that name, if the artifact has it."""
    modes = score_modes(predictor.artifact.stride, predictor.artifact.score_first.learns)
    for mode in modes:
        if mode.name == name:
            return mode
    raise ConfigError(f"--mode {name}: the artifact's recipe does not learn while it scores")


def _claimed(
    part: _Part, losses_N: Tensor | None, predictor: Predictor, mode: ScoreMode
) -> tuple[float, str]:
    """Return the loss in nats that is claimed for the part, and the score's label."""
    if part.claim is not None:
        return part.claim.nats, part.claim.label
    assert losses_N is not None
    score = predictor.score_of(losses_N, Stream("the text", part.tokens, part.texts), mode.fixed)
    return score.loss_nats * score.tokens, score.label


def _overhead(
    losses_N: Tensor | None, num_targets: int, coded: CodedText, vocab_size: int
) -> tuple[float, float]:
    """Return `Proof.lane_bytes`, and the coder's rounding in bytes."""
    of_heads = 0.0
    if losses_N is not None:
        # No probability is above 1, whatever a scorer says.
        of_heads = float(losses_N.double()[coded.heads - 1].clamp(min=0).sum()) / math.log(2)
    lane_bytes = (len(coded.heads) * math.log2(vocab_size) - of_heads) / 8
    rounding_bytes = -num_targets * math.log2(1 - vocab_size / 2**_PRECISION_BITS) / 8
    return lane_bytes, rounding_bytes


def _part_of_file(text: Path, tokenizer: Tokenizer, max_bytes: int) -> _Part:
    """Return the beginning of a text file, about which no run reports anything."""
    content = read_text(text)
    kept = content.encode()[:max_bytes].decode(errors="ignore") if max_bytes else content
    if content and not kept:
        raise ConfigError(f"invalid --bytes = {max_bytes}: the first character is longer")
    tokens = encoded("the text", [kept], tokenizer).tokens
    return _Part(tokens, [kept], len(kept.encode()), len(tokens) - 1, None)


def _scored_part(folder: Path, mode: ScoreMode, max_bytes: int) -> _Part:
    """Return the first documents of a run's validation text, with what the run reports of them."""
    if not RunDir(folder).config_file.exists():
        raise ConfigError("name the text whose score to prove: --text FILE")
    run, _, _ = RunDir.open(folder)
    if not run.results_file.exists() or not run.documents.exists():
        raise UserError(f"{folder} is not finished: `paramgolf run --resume {folder}` first")
    tokenizer = Tokenizer.load(run.tokenizer)
    scored = PreparedText.of(run).scored_text(run.data, tokenizer)
    require_restored(scored, tokenizer)  # its bytes are those that the score counts
    require_counted(scored, tokenizer)
    tokens, texts = scored.tokens, tokenizer.decode_documents(scored.tokens)
    sizes = np.array([len(text.encode()) for text in scored.texts])
    count = len(beginning(sizes.tolist(), max_bytes))
    starts = [*document_starts(tokens, tokenizer.bos).tolist(), len(tokens)]
    claim = _claim_of_run(run, mode.stage, sizes, count, len(tokens) - 1)
    size = int(sizes[:count].sum())
    return _Part(tokens[: starts[count]], texts[:count], size, len(tokens) - 1, claim)


def beginning(sizes: Sequence[int], max_bytes: int) -> Sequence[int]:
    """Return the first documents' sizes, together at most `max_bytes` (0: all), at least one."""
    if not max_bytes:
        return sizes
    return sizes[: max(1, int(np.searchsorted(np.cumsum(sizes), max_bytes, side="right")))]


def _claim_of_run(
    run: RunDir, stage: str, sizes_D: NDArray[np.int64], count: int, num_targets: int
) -> Claim:
    """Return what the run reports of its first `count` documents.

    Every score in results.json must be the sum of the losses in documents.safetensors, over the
    same bytes and tokens.

    Raises:
        UserError: naming the score that is not.
    """
    tensors, _ = read_tensors(run.documents)
    results = read_results(run)
    stages = results["stages"]
    of_packed = [name for name in stages if name in tensors]
    if stage not in of_packed:
        raise UserError(f"{run.path} reports no score {stage!r} with its losses by document")
    for name in of_packed:
        score, nats = stages[name], float(tensors[name].double().sum())
        for key in other_sums(score, nats):
            summed = nats / (math.log(2) * score["bytes"] if key == "bpb" else score["tokens"])
            raise UserError(
                f"not proven: results.json of {run.path} reports {key} {score[key]:.6f} for "
                f"{name}, but its losses in {run.documents.name} sum to {summed:.6f}"
            )
        if score["tokens"] != num_targets or len(tensors[name]) != len(sizes_D):
            raise UserError(f"not proven: {run.path} reports {name} of another text")
    found_D = tensors["bytes"].numpy()
    if not np.array_equal(found_D, sizes_D) or stages[stage]["bytes"] != sizes_D.sum():
        raise UserError(
            f"not proven: {run.path} reports {stages[stage]['bytes']:,} bytes of text, its "
            f"documents have {sizes_D.sum():,}"
        )
    last = list(stages)[-1]
    return Claim(
        stage,
        stages[stage]["bpb"],
        label_of(results, stage),
        float(tensors[stage].double()[:count].sum()),
        len(sizes_D),
        int(sizes_D.sum()),
        (last, stages[last]["bpb"]),
    )


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
