"""A packed model that scores and writes text: artifact and tokenizer in, scores out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.checked import require
from paramgolf.compress.artifact import Artifact, ArtifactError, read
from paramgolf.config import ScoreFirstConfig
from paramgolf.data.provenance import Label, Provenance
from paramgolf.data.streams import Stream, encoded
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError, UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.runtime.device import Runtime, select_runtime
from paramgolf.scoring.bits_per_byte import Score, score_losses
from paramgolf.scoring.score_first import score_first_losses
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import Windows, windows_of

_BATCH_TOKENS = {"cpu": 8192, "cuda": 98_304}


class Predictor:
    """A packed model: fixed, or learning while it scores if its recipe says so.

    What it learns from one text is forgotten before the next.
    """

    def __init__(
        self,
        artifact: Artifact,
        tokenizer: Tokenizer,
        provenance: Provenance | None,
        runtime: Runtime,
    ) -> None:
        """Build the model from the artifact's integers; most callers use `load` instead."""
        self.artifact = artifact
        self.tokenizer = tokenizer
        self._provenance = provenance
        self.order = layer_order(artifact.model, recurrent=True)
        self._ranks = runtime.ranks
        self.model = GPT(artifact.model, runtime.dtype)
        self.model.load_state_dict(artifact.state())
        self.model.to(runtime.device)
        self.model.leave_out(tokenizer.impossible_successors)
        if runtime.accelerated:
            self.model.accelerate()

    def label(self, texts: Sequence[str]) -> Label:
        """Label a text by its overlap with the texts that shaped the artifact."""
        if self._provenance is None:
            return Label("unverified")
        return self._provenance.label(texts)

    def score(
        self,
        text: str,
        stride: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        fixed: bool = False,
    ) -> Score:
        """Score one document.

        Args:
            text: the document, any Unicode.
            stride: of sliding windows; 0: consecutive windows; None: the recipe's.
            progress: called with the number of targets scored and the total.
            fixed: do not learn, even if the recipe does.

        Raises:
            UserError: if the text is empty.
        """
        stream = encoded("the text", [text], self.tokenizer)
        return self.score_stream(stream, stride, progress=progress, fixed=fixed)

    def generate(
        self,
        prompt: str = "",
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the prompt's continuation piece by piece, up to the end of the document.

        Args:
            prompt: the beginning of the document; it is not repeated in the output.
            max_tokens: largest number of tokens to generate.
            temperature: of the distribution; 0: always the most likely token.
            top_p: sample from the smallest set of tokens with this total probability.
            seed: the same seed gives the same text on the same machine.

        Raises:
            ConfigError: if the temperature is below 0, or top_p is not in (0, 1].
        """
        from paramgolf.scoring.generate import sample_tokens, streamed_text

        require(temperature >= 0, "temperature", temperature, "0 or more")
        require(0 < top_p <= 1, "top_p", top_p, "over 0 and at most 1")
        tokens = self.tokenizer.encode([prompt])[0].tolist()
        generator = torch.Generator().manual_seed(seed)
        sampled = sample_tokens(self.model, self.order, tokens, temperature, top_p, generator)
        return streamed_text(islice(sampled, max_tokens), self.tokenizer)

    def score_stream(
        self,
        stream: Stream,
        stride: int | None = None,
        batch_tokens: int = 0,
        progress: Callable[[int, int], None] | None = None,
        fixed: bool = False,
    ) -> Score:
        """Score a text.

        Args:
            stream: its tokens and its documents.
            stride: of sliding windows; 0: consecutive windows; None: the recipe's.
            batch_tokens: tokens per forward pass; 0: the device's default.
            progress: called with the number of targets scored and the total.
            fixed: do not learn, even if the recipe does.
        """
        losses = self.losses(stream.tokens, stride, batch_tokens, progress, fixed)
        return self.score_of(losses, stream, fixed)

    def losses(
        self,
        stream: NDArray[np.uint16],
        stride: int | None = None,
        batch_tokens: int = 0,
        progress: Callable[[int, int], None] | None = None,
        fixed: bool = False,
    ) -> Tensor:
        """Return the loss of every target in nats, (N,); arguments as in `score_stream`.

        Raises:
            UserError: if a loss is not finite.
        """
        model, order, learning = self.model, self.order, self.learning(fixed)
        batch_tokens = batch_tokens or _BATCH_TOKENS[model.embedding.device.type]
        windows = self.windows(len(stream) - 1, stride)
        how = (stream, windows, batch_tokens, progress, self._ranks)
        if learning is None:
            losses = window_losses(model, order, *how)
        else:
            losses = score_first_losses(model, order, learning, *how)
        if not bool(losses.isfinite().all()):
            raise UserError("the model's losses are not finite")
        return losses

    def learning(self, fixed: bool = False) -> ScoreFirstConfig | None:
        """Return how the model learns while it scores; None: it does not, or must not."""
        learning = self.artifact.score_first
        return learning if learning.learns and not fixed else None

    def windows(self, num_targets: int, stride: int | None = None) -> list[Windows]:
        """Return the windows that score this many targets.

        Raises:
            ConfigError: if the stride is longer than a window.
        """
        seq_len = self.artifact.model.seq_len
        stride = self.artifact.stride if stride is None else stride
        if not 0 <= stride <= seq_len:
            raise ConfigError(f"invalid stride = {stride}: expected 0 to {seq_len}")
        return windows_of(num_targets, seq_len, stride)

    def score_of(
        self, losses_N: Tensor, stream: Stream, fixed: bool, label: Label | None = None
    ) -> Score:
        """Return the score of a text with these losses.

        `label` is the one of a fixed predictor; None: the one that follows from the provenance.
        """
        label = label or self.label(stream.texts)
        if self.learning(fixed):
            label = label.adaptive()
        return score_losses(losses_N, stream.bytes, stream.bytes_are, label)


def load(path: str | Path, tokenizer: str | Path | None = None, device: str = "auto") -> Predictor:
    """Load an artifact for scoring.

    Args:
        path: the artifact file.
        tokenizer: its SentencePiece model; by default tokenizer.model in the artifact's folder.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: if a file is missing, damaged, or does not belong to the artifact.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"invalid device = {device!r}: expected auto, cpu or cuda")
    return load_on(Path(path), Path(tokenizer) if tokenizer else None, select_runtime(device))


def load_on(path: Path, tokenizer: Path | None, runtime: Runtime) -> Predictor:
    """Load an artifact like `load`, on an existing runtime."""
    artifact = read(path)
    file = tokenizer or path.with_name("tokenizer.model")
    loaded = Tokenizer.load(file)
    if loaded.sha256 != artifact.tokenizer_sha256:
        raise ArtifactError(
            f"{file} is not the tokenizer of {path}: SHA-256 {loaded.sha256[:16]} instead of "
            f"{artifact.tokenizer_sha256[:16]}"
        )
    return Predictor(artifact, loaded, _provenance(path, artifact), runtime)


def _provenance(path: Path, artifact: Artifact) -> Provenance | None:
    """Return the provenance in the artifact's folder, if any; its hash must match."""
    file = path.with_name("provenance.safetensors")
    if not file.is_file():
        return None
    if hashlib.sha256(file.read_bytes()).hexdigest() != artifact.provenance_sha256:
        raise UserError(f"{file} is not the provenance of {path}: its SHA-256 differs")
    return Provenance.load(file)
