"""The run that is audited, loaded: what all checks of its model read."""

from __future__ import annotations

import dataclasses
import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.config import RunConfig
from paramgolf.data.prepared import PreparedText
from paramgolf.data.streams import Stream
from paramgolf.errors import ConfigError, UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.records import read_results
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.modes import ScoreMode, score_modes
from paramgolf.scoring.predictor import Predictor, load_on
from paramgolf.verify.noise import Limits, limits_of

_START_SECONDS = 3.0
"""Expected of a process that loads the artifact."""


class Progress:
    """Reports how much of the audit is done, by the seconds that its long parts should take."""

    def __init__(self, reporter: Reporter, seconds: dict[str, float]) -> None:
        """Start; `seconds` are those expected of each part, in order."""
        self.seconds = seconds
        self._total = sum(seconds.values())
        self._progress = reporter.progress("audit", 100, "%")

    def update(self, part: str, share: float) -> None:
        """Report that this share of a part is done, and everything before that part."""
        parts = list(self.seconds)
        before = sum(self.seconds[name] for name in parts[: parts.index(part)])
        percent = 100 * (before + min(share, 1) * self.seconds[part]) / self._total
        self._progress.update(percent, details=f"{part} ({parts.index(part) + 1} of {len(parts)})")

    def waiting(self, part: str) -> Callable[[float], None]:
        """Return a function that reports a part by the seconds that it has taken so far."""
        return lambda seconds: self.update(part, min(seconds / self.seconds[part], 0.95))


@dataclass(frozen=True)
class AuditedRun:
    """A finished run with its packed model and its scored text."""

    run: RunDir
    recipe: str
    """Its name, as the run states it."""
    config: RunConfig
    results: dict[str, Any]
    modes: list[ScoreMode]
    text: Stream
    """The scored text, as it is in the folder now."""
    predictor: Predictor
    """Never accelerated: the checks score windows of many shapes."""
    accelerated: Predictor
    """For whole texts; on a CPU the same as `predictor`."""
    limits: Limits
    positions: int
    """At which every token of the vocabulary is scored."""
    random: np.random.Generator
    progress: Progress

    @property
    def seq_len(self) -> int:
        """Tokens of a window."""
        return self.predictor.artifact.model.seq_len

    @property
    def vocab_size(self) -> int:
        """Number of pieces of the tokenizer."""
        return self.predictor.tokenizer.vocab_size

    @property
    def stream(self) -> NDArray[np.uint16]:
        """(N + 1,) the tokens of the scored text."""
        return self.text.tokens

    @functools.cached_property
    def impossible_VV(self) -> Tensor:
        """Which token never follows which, on the model's device."""
        found = self.predictor.tokenizer.impossible_successors
        if found is None:
            found = np.zeros((self.vocab_size, self.vocab_size), np.bool_)
        return torch.from_numpy(found).to(self.predictor.model.embedding.device)

    def sample(self, count: int, size: int) -> list[int]:
        """Return up to `size` random numbers of 0 .. count - 1, in order."""
        return sorted(self.random.choice(count, min(count, size), replace=False).tolist())

    def with_other_tokens(self, tokens: NDArray[np.uint16], first: int) -> NDArray[np.uint16]:
        """Return a copy with a random different token at every position from `first` on."""
        shift = self.random.integers(1, self.vocab_size, len(tokens) - first)
        changed = tokens.copy()
        changed[first:] = (tokens[first:] + shift) % self.vocab_size
        return changed


def load_run(
    path: Path, positions: int, seed: int, runtime: Runtime, reporter: Reporter
) -> AuditedRun:
    """Load the run at `path`.

    Raises:
        UserError: if it is not finished, or its artifact, tokenizer or provenance is damaged.
        ConfigError: if its scored text is gone.
    """
    run, recipe, config = RunDir.open(path)
    if not run.results_file.exists():
        raise UserError(f"{path} is not finished: `paramgolf run --resume {path}` first")
    results = read_results(run)
    prepared = PreparedText.of(run)
    if gone := [path for path in prepared.shards("val", run.data) if not path.exists()]:
        raise ConfigError(
            f"{gone[0]}, scored text of the run, is gone, so nothing can be scored: restore it"
        )
    predictor = load_on(run.artifact, None, dataclasses.replace(runtime, accelerated=False))
    modes = score_modes(config.score.stride, config.score_first.learns)
    tokens = positions * predictor.tokenizer.vocab_size * config.model.seq_len
    return AuditedRun(
        run=run,
        recipe=recipe,
        config=config,
        results=results,
        modes=modes,
        text=prepared.found_text(run.data, predictor.tokenizer),
        predictor=predictor,
        accelerated=load_on(run.artifact, None, runtime) if runtime.accelerated else predictor,
        limits=limits_of(runtime.dtype),
        positions=positions,
        random=np.random.default_rng(seed),
        progress=Progress(reporter, _expected_seconds(modes, results, tokens)),
    )


def fresh_seed() -> int:
    """Return a seed that nobody can know beforehand."""
    return secrets.randbits(32)


def _expected_seconds(
    modes: list[ScoreMode], results: dict[str, Any], vocabulary_tokens: int
) -> dict[str, float]:
    """Return what the long parts should take, from the seconds of the run, in order."""
    by_phase, rates = results["seconds"], results["tokens_per_second"]
    scoring = {mode: by_phase.get(f"score: {mode.stage}", 1.0) for mode in modes}
    parts = {f"scoring again {mode.stage}": _START_SECONDS + scoring[mode] for mode in modes}
    parts |= {f"every loss {mode.stage}": scoring[mode] for mode in modes}
    parts |= {f"other tokens {mode.stage}": _START_SECONDS + scoring[mode] for mode in modes}
    rate = rates.get("score_quantized") or 10_000
    parts["vocabulary"] = _START_SECONDS + vocabulary_tokens / max(rate, 1)
    return {name: max(1.0, float(seconds)) for name, seconds in parts.items()}


def on_gpu(run: AuditedRun, environment: dict[str, Any]) -> bool:
    """Return whether the run or the audit computes on a GPU."""
    here = run.predictor.model.embedding.device.type != "cpu"
    return here or (run.config.device != "cpu" and environment.get("gpu") is not None)


def is_bfloat16(run: AuditedRun) -> bool:
    """Return whether the model computes in bfloat16, whose rounding is noise."""
    return run.predictor.model.dtype is torch.bfloat16
