"""The time ledger: every second of a run belongs to a phase, and every phase to a budget."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from paramgolf.errors import UserError

Budget = Literal["training", "evaluation", "none"]

OTHER = "between phases"
"""The phase of a stage's seconds that belong to no other phase is STAGE: OTHER."""


class Account(NamedTuple):
    """The budget in which the seconds of a phase count."""

    budget: Budget
    reason: str = ""
    """Why they are not counted, if the budget is "none"."""


_DATA = Account("none", "tokenizing and sharding")
_SETUP = Account("none", "set-up, on synthetic tokens")
_FOR_THE_REPORT = Account("none", "a figure for the report; nothing depends on it")
_TRAINING, _EVALUATION = Account("training"), Account("evaluation")
_ADAPTATION = "the text decides"

PHASES: dict[str, Account | str] = {
    "set-up: imports": _SETUP,
    "data: corpus": _DATA,
    "data: tokenizer": _DATA,
    "data: encode": _DATA,
    "data: overlap": _DATA,
    "data: check shards": _DATA,
    "train: build model": _SETUP,
    "train: warm up": _SETUP,
    "train: read checkpoint": Account("none", "reading weights; nothing is learned"),
    "train: steps": _TRAINING,
    "train: write": _TRAINING,
    "train: score": _FOR_THE_REPORT,
    "adapt: build model": _ADAPTATION,
    "adapt: warm up": _SETUP,
    "adapt: steps": _ADAPTATION,
    "adapt: write": _ADAPTATION,
    "adapt: score": _FOR_THE_REPORT,
    "pack: Hessians": _TRAINING,
    "pack: GPTQ": _TRAINING,
    "pack: fill the budget": _TRAINING,
    "pack: sensitivities": _TRAINING,
    "pack: code weights": _TRAINING,
    "pack: build code file": _TRAINING,
    "pack: measure": _FOR_THE_REPORT,
    "pack: write": _TRAINING,
    "score: load artifact": _EVALUATION,
    "score: quantized": _EVALUATION,
    "score: sliding": _EVALUATION,
    "score: score_first": _EVALUATION,
    "score: write documents": _FOR_THE_REPORT,
    "score: xz -9, for scale": _FOR_THE_REPORT,
    # In the budget of the stage, so that there is nothing to gain from leaving work out of phases.
    f"prepare: {OTHER}": _DATA,
    f"train: {OTHER}": _TRAINING,
    f"adapt: {OTHER}": _ADAPTATION,
    f"pack: {OTHER}": _TRAINING,
    f"score: {OTHER}": _EVALUATION,
}


def account(phase: str, adapted_on: Literal["none", "adapt", "scored"]) -> Account:
    """Return the budget in which the seconds of a phase count.

    Args:
        phase: its name.
        adapted_on: the text of adaptation; adapting on the scored text is evaluation.

    Raises:
        UserError: if there is no such phase.
    """
    if phase not in PHASES:
        raise UserError(f"{phase!r} is no phase of this version's runs")
    found = PHASES[phase]
    if isinstance(found, Account):
        return found
    return _EVALUATION if adapted_on == "scored" else _TRAINING


class Ledger:
    """Seconds by phase. Phases do not overlap; a phase may be entered several times."""

    def __init__(self) -> None:
        """Start the clock."""
        self._opened = time.monotonic()
        self._earlier = 0.0
        self._seconds: dict[str, float] = {}
        self._current: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to the phase `name`, even if it ends with an error."""
        assert self._current is None, f"phase {name} inside {self._current[0]}"
        start = time.monotonic()
        try:
            with self.shown(name):
                yield
        finally:
            self.add(name, time.monotonic() - start)

    @contextmanager
    def shown(self, name: str) -> Iterator[None]:
        """Make `name` the current phase during the block, without adding its seconds."""
        self._current = name, time.monotonic()
        try:
            yield
        finally:
            self._current = None

    def current(self) -> tuple[str, dict[str, float]] | None:
        """Return the current phase and the seconds by phase until now; None between phases."""
        if self._current is None:
            return None
        name, start = self._current
        now = self._seconds.get(name, 0.0) + time.monotonic() - start
        return name, self._seconds | {name: now}

    def add(self, name: str, seconds: float, earlier: float = 0.0) -> None:
        """Add seconds measured elsewhere, of which `earlier` passed before the clock started."""
        assert name in PHASES, f"unknown phase {name!r}"
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._earlier += earlier

    def seconds(self) -> dict[str, float]:
        """Return the seconds by phase, in the order of their first entry."""
        return dict(self._seconds)

    def close(self, stage: str) -> dict[str, float]:
        """Add the time since the start that is in no phase to `OTHER`; return `seconds`."""
        wall = time.monotonic() - self._opened + self._earlier
        self.add(f"{stage}: {OTHER}", max(0.0, wall - sum(self._seconds.values())))
        return self.seconds()
