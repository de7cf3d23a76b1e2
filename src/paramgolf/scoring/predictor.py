"""The packed model at work: artifact and tokenizer in, scores out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.compress.artifact import Artifact, ArtifactError, read
from paramgolf.config import require
from paramgolf.data.provenance import Label, Provenance
from paramgolf.data.streams import encoded
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError, UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.runtime.device import Runtime, select_runtime
from paramgolf.scoring.bits_per_byte import Score, score_losses
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import Windows, plain_windows, sliding_windows

_BATCH_TOKENS = {"cpu": 8192, "cuda": 98_304}


class Predictor:
    """A packed model: fixed, or learning while it scores if its recipe says so.

    After a text it is what it was before.
    """

    def __init__(
        self,
        artifact: Artifact,
        tokenizer: Tokenizer,
        provenance: Provenance | None,
        runtime: Runtime,
    ) -> None:
        """Build the model from the artifact's integers; prefer `load`."""
        self.artifact = artifact
        self.tokenizer = tokenizer
        self._provenance = provenance
        self.order = layer_order(artifact.model, recurrent=True)
        self._ranks = runtime.ranks
        self.model = GPT(artifact.model, runtime.dtype)
        self.model.load_state_dict(artifact.state())
        self.model.to(runtime.device)
        if runtime.compiled:
            self.model.compile_parts()

    def label(self, texts: Sequence[str]) -> Label:
        """Label a text by its overlap with what shaped the artifact."""
        if self._provenance is None:
            return Label("unverified", None)
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
            stride: of sliding windows; 0: consecutive windows; None: as the recipe.
            progress: called with the number of targets scored and of all.
            fixed: do not learn, whatever the recipe says.

        Raises:
            UserError: if the text is empty.
        """
        stream = encoded("the text", [text], self.tokenizer)
        return self.score_stream(
            stream.tokens, stream.texts, stride, progress=progress, fixed=fixed
        )

    def generate(
        self,
        prompt: str = "",
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> Iterator[str]:
        """Continue the prompt (empty: begin a document), piece by piece, to the document's end.

        Args:
            prompt: what the document begins with; it is not repeated.
            max_tokens: the most that is generated.
            temperature: of the distribution; 0: always the likeliest token.
            top_p: sample from the fewest tokens that together have this probability.
            seed: the same seed gives the same text on the same machine.

        Raises:
            ConfigError: for a temperature below 0, or a top_p that is not in (0, 1].
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
        stream: NDArray[np.uint16],
        texts: Sequence[str],
        stride: int | None = None,
        batch_tokens: int = 0,
        progress: Callable[[int, int], None] | None = None,
        fixed: bool = False,
    ) -> Score:
        """Score a stream of (N + 1,) tokens.

        Args:
            stream: the tokens.
            texts: its documents, for the label and their bytes.
            stride: of sliding windows; 0: consecutive windows; None: as the recipe.
            batch_tokens: tokens of one forward pass; 0: what suits the device.
            progress: called with the number of targets scored and of all.
            fixed: do not learn, whatever the recipe says.
        """
        losses = self.losses(stream, stride, batch_tokens, progress, fixed)
        return self.score_of(losses, stream, texts, fixed)

    def losses(
        self,
        stream: NDArray[np.uint16],
        stride: int | None = None,
        batch_tokens: int = 0,
        progress: Callable[[int, int], None] | None = None,
        fixed: bool = False,
    ) -> Tensor:
        """Loss of every target of a stream in nats, (N,); arguments as `score_stream`."""
        batch_tokens = batch_tokens or _BATCH_TOKENS[self.model.embedding.device.type]
        windows = self.windows(len(stream) - 1, stride)
        learning = None if fixed else self.artifact.score_first
        return window_losses(
            self.model, self.order, stream, windows, batch_tokens, progress, self._ranks, learning
        )

    def windows(self, num_targets: int, stride: int | None = None) -> list[Windows]:
        """The windows that score so many targets.

        Raises:
            ConfigError: if the stride is longer than a window.
        """
        seq_len = self.artifact.model.seq_len
        stride = self.artifact.stride if stride is None else stride
        if not 0 <= stride <= seq_len:
            raise ConfigError(f"invalid stride = {stride}: expected 0 to {seq_len}")
        if stride:
            return sliding_windows(num_targets, seq_len, stride)
        return plain_windows(num_targets, seq_len)

    def score_of(
        self,
        losses_N: Tensor,
        stream: NDArray[np.uint16],
        texts: Sequence[str],
        fixed: bool,
        original_bytes: int | None = None,
    ) -> Score:
        """The score that the losses of a stream make.

        `original_bytes` are those of the text as it was given, if `texts` is not just that.
        """
        label = self.label(texts)
        if self.artifact.score_first.learns and not fixed:
            label = label.adaptive()
        if original_bytes is None:
            original_bytes = sum(len(text.encode()) for text in texts)
        return score_losses(losses_N, stream, self.tokenizer, label, original_bytes)


def load(path: str | Path, tokenizer: str | Path | None = None, device: str = "auto") -> Predictor:
    """Load an artifact for scoring.

    Args:
        path: the artifact file.
        tokenizer: its SentencePiece model; by default `tokenizer.model` beside the artifact.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: if a file is missing, damaged, or does not belong to the artifact.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"invalid device = {device!r}: expected auto, cpu or cuda")
    return load_on(Path(path), Path(tokenizer) if tokenizer else None, select_runtime(device))


def load_on(path: Path, tokenizer: Path | None, runtime: Runtime) -> Predictor:
    """`load` on a runtime that exists already."""
    artifact = read(path)
    pieces = Tokenizer.load(tokenizer or path.with_name("tokenizer.model"))
    if pieces.sha256 != artifact.tokenizer_sha256:
        raise ArtifactError(
            f"{tokenizer or path.with_name('tokenizer.model')} is not the tokenizer of {path}: "
            f"SHA-256 {pieces.sha256[:16]} instead of {artifact.tokenizer_sha256[:16]}"
        )
    return Predictor(artifact, pieces, _provenance(path, artifact), runtime)


def _provenance(path: Path, artifact: Artifact) -> Provenance | None:
    """The provenance beside the artifact, if it is there and the artifact's own."""
    beside = path.with_name("provenance.safetensors")
    if not beside.is_file():
        return None
    if hashlib.sha256(beside.read_bytes()).hexdigest() != artifact.provenance_sha256:
        raise UserError(f"{beside} is not the provenance of {path}: its SHA-256 differs")
    return Provenance.load(beside)
