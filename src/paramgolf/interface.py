"""What `import paramgolf` offers to Python programs; docs/python.md introduces it."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from paramgolf.checked import from_json, to_json
from paramgolf.config import RunConfig
from paramgolf.data.streams import Stream, encoded
from paramgolf.errors import ConfigError, UserError  # noqa: F401 (part of the interface)
from paramgolf.pipeline.session import start
from paramgolf.recipes import RECIPES, RENAMED, require_text, with_absolute_paths
from paramgolf.report.coloured import Coloured
from paramgolf.runtime.console import Reporter, standard_output
from paramgolf.runtime.device import select_runtime
from paramgolf.runtime.names import choose, find_artifact
from paramgolf.scoring.bits_per_byte import Score
from paramgolf.scoring.predictor import load as load_packed
from paramgolf.scoring.text_coder import TextCoder


class Predictor:
    """A packed model. Texts are strings; several documents are a list of strings.

    >>> predictor = paramgolf.load("runs/notes")
    >>> predictor.score("How many bits is this?").bytes
    22
    """

    def __init__(self, path: Path, tokenizer: Path | None, device: str) -> None:
        """Load an artifact; use `paramgolf.load`."""
        self._packed = load_packed(path, tokenizer, device)
        kind = "cuda" if self._packed.model.embedding.is_cuda else "cpu"
        self._load_coder = functools.partial(TextCoder, path, tokenizer, select_runtime(kind))

    def tokens(self, text: str | Sequence[str]) -> list[str]:
        r"""Return the tokenizer's pieces of a text, as they are predicted: N strings.

        A space is a space; a byte of a character without a piece is `<0x..>`; `<s>` begins the
        second and every later document. Capitals may be operators (CaseOps).

        >>> "".join(predictor.tokens("Some words, and a line.\n"))
        'Some words, and a line.\n'
        """
        names = sentencepiece.SentencePieceProcessor(model_proto=self._packed.tokenizer.model)
        pieces = map(names.id_to_piece, self._stream(text).tokens[1:].tolist())
        return [piece.replace("\u2581", " ") for piece in pieces]

    def losses(
        self, text: str | Sequence[str], stride: int | None = None, fixed: bool = False
    ) -> NDArray[np.float64]:
        """Return the loss of every token of a text in nats, (N,): those of `tokens`.

        >>> len(predictor.losses("Some words.")) == len(predictor.tokens("Some words."))
        True

        Args:
            text: the documents.
            stride: of sliding windows; 0: consecutive windows; None: the recipe's.
            fixed: do not learn from the text, even if the recipe does.

        Raises:
            UserError: if the text is empty or not valid Unicode.
            ConfigError: if the stride is longer than a window.
        """
        losses_N = self._packed.losses(self._stream(text).tokens, stride, fixed=fixed)
        return losses_N.double().cpu().numpy()

    def score(
        self, text: str | Sequence[str], stride: int | None = None, fixed: bool = False
    ) -> Score:
        """Return the score of a text with its label; arguments and errors as of `losses`.

        >>> score = predictor.score("Some words.")
        >>> nats = float(predictor.losses("Some words.").sum())
        >>> math.isclose(nats / math.log(2) / score.bytes, score.bpb)
        True
        """
        stream = self._stream(text)
        return self._packed.score_stream(stream, stride, fixed=fixed)

    def coloured(
        self, text: str | Sequence[str], stride: int | None = None, fixed: bool = False
    ) -> Coloured:
        """Return a text as HTML, every token coloured by its loss; a notebook shows it as such.

        Arguments and errors as of `losses`.

        >>> predictor.coloured("Some words.").startswith("<div ")
        True
        """
        tokens = self._stream(text).tokens
        losses_N = self._packed.losses(tokens, stride, fixed=fixed)
        return Coloured.of(self._packed.tokenizer, tokens[1:].tolist(), losses_N.tolist())

    def generate(
        self,
        prompt: str = "",
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the prompt's continuation piece by piece, up to the end of the document.

        >>> text = "".join(predictor.generate("The ", max_tokens=20, seed=1))
        >>> text == "".join(predictor.generate("The ", max_tokens=20, seed=1))
        True

        Args:
            prompt: the beginning of the document; it is not repeated in the output.
            max_tokens: largest number of tokens to generate.
            temperature: of the distribution; 0: always the most likely token.
            top_p: sample from the smallest set of tokens with this total probability.
            seed: the same seed gives the same text on the same machine.

        Raises:
            ConfigError: if max_tokens or the temperature is below 0, or top_p is not in (0, 1].
        """
        if max_tokens < 0:
            raise ConfigError(f"invalid max_tokens = {max_tokens}: expected 0 or more")
        return self._packed.generate(prompt, max_tokens, temperature, top_p, seed)

    def compress(self, text: str) -> bytes:
        """Return a text compressed with the model's predictions; `decompress` restores it.

        >>> content = predictor.compress("Some words.")
        >>> predictor.decompress(content)
        'Some words.'

        Raises:
            UserError: if the tokenizer does not preserve the text.
        """
        return self._coder.compress([text]).content

    def decompress(self, content: bytes) -> str:
        """Return the text of which `compress` made these bytes, with the same artifact.

        The machine must compute as the one that compressed did.

        Raises:
            UserError: if the bytes are damaged, or of another artifact, version or machine.
        """
        return "".join(self._coder.decompress(content, "the content"))

    @functools.cached_property
    def _coder(self) -> TextCoder:
        return self._load_coder()

    def _stream(self, text: str | Sequence[str]) -> Stream:
        texts = [text] if isinstance(text, str) else list(text)
        return encoded("the text", texts, self._packed.tokenizer)


def load(
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Predictor:
    """Load a packed model.

    Args:
        path: a model.bin, or the run or bundle that contains it.
        tokenizer: its SentencePiece model; by default tokenizer.model beside it.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: if a file is missing, damaged, or does not belong to the artifact.
    """
    return Predictor(find_artifact(Path(path)), Path(tokenizer) if tokenizer else None, device)


class Run(NamedTuple):
    """A finished run."""

    path: Path
    """Its directory."""
    results: dict[str, Any]
    """The content of its results.json; docs/results.md documents the keys."""

    def load(self, device: str = "auto") -> Predictor:
        """Load its model.

        >>> run.load().score("Some words.").tokens > 0
        True
        """
        return load(self.path, device=device)


def run(
    recipe: str,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **keys: Any,
) -> Run:
    """Train, adapt, quantize, pack and score a model, as `paramgolf run` does.

    >>> paramgolf.run("tiny", train__max_stepz=20)
    Traceback (most recent call last):
    paramgolf.errors.ConfigError: unknown key 'train.max_stepz' (did you mean train.max_steps?); ...

    Args:
        recipe: its name.
        out: directory to create; by default runs/RECIPE-DATE-TIME.
        progress: print what the command prints while it runs.
        keys: keys of the recipe to change, with two underscores for the dot: seed=42,
            train__max_steps=20, data__source="notes".

    Raises:
        ConfigError: if the recipe or a key does not exist, or a value is invalid; before anything
            is written.
        UserError: if a file is missing, `out` exists, or a stage fails.
    """
    _, config = choose("recipe", recipe, RECIPES, RENAMED)
    config = with_absolute_paths(_changed(config, keys))
    require_text(recipe, config)
    path = Path(out or f"runs/{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
    reporter = standard_output() if progress else Reporter()
    return Run(path, start(recipe, config, path, None, reporter))


def _changed(config: RunConfig, keys: Mapping[str, Any]) -> RunConfig:
    """Return a configuration with other values; without its tokenizer if the text is another."""
    if "data__source" in keys:
        data = dataclasses.replace(config.data, tokenizer="")
        config = dataclasses.replace(config, data=data)
    values = to_json(config)
    for name, value in keys.items():
        section, dot, key = name.partition("__")
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not dot:
            if isinstance(values.get(name), dict):
                raise ConfigError(f"{name} is a section: name one of its keys, {name}__KEY")
            values[name] = value
        elif isinstance(values.get(section), dict):
            values[section][key] = value
        else:
            sections = ", ".join(name for name in values if isinstance(values[name], dict))
            raise ConfigError(f"unknown section {section!r} of {name}: expected one of {sections}")
    return from_json(RunConfig, values)
