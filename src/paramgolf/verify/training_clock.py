"""The clock of training, which must never go back, over all attempts that led to the weights."""

from __future__ import annotations

from typing import Any, NamedTuple

from paramgolf.config import RunConfig
from paramgolf.verify.checks import Check, check

_NAME, _CONDITION = "training clock", "seconds"
_ROUNDED = 0.001
"""Events of steps have their seconds rounded to milliseconds."""
_MAX_SECONDS, _MAX_SHARE = 0.5, 0.02
"""Between the clock of training and the time between events."""
_MAX_RATE_ERROR = 0.02


class Reading(NamedTuple):
    """The clock of training after a step, and when it was read."""

    step: int
    elapsed: float
    time: float
    writing: float = 0.0
    """Seconds of writing a checkpoint, between reading the clock and the time of the event."""


class Attempt(NamedTuple):
    """The events from one start of a stage to the next start of any."""

    events: list[dict[str, Any]]

    @property
    def own_steps(self) -> float:
        """Seconds of training steps in this attempt."""
        begun, ended = self.first("clock_started"), self.first("clock_stopped")
        return ended["elapsed_seconds"] - begun["elapsed_seconds"] if begun and ended else 0.0

    def first(self, kind: str) -> dict[str, Any] | None:
        """Return the first event of a kind."""
        return next((event for event in self.events if event["event"] == kind), None)

    def checkpoints(self) -> dict[int, float]:
        """Return the clock of every checkpoint by its step."""
        found = (event for event in self.events if event["event"] == "checkpoint")
        return {event["step"]: event["elapsed_seconds"] for event in found}

    def readings(self) -> list[Reading]:
        """Return all readings of the clock while this attempt trained."""
        return [
            Reading(e["step"], e["elapsed_seconds"], e["time"], e.get("seconds", 0.0))
            for e in self.events
            if e["event"] in ("train", "checkpoint")
        ]


def attempts_of(events: list[dict[str, Any]], stage: str) -> list[Attempt]:
    """Return all attempts at a stage."""
    attempts: list[Attempt] = []
    current: list[dict[str, Any]] | None = None
    for event in events:
        if event["event"] == "stage_started":
            current = [] if event["stage"] == stage else None
            if current is not None:
                attempts.append(Attempt(current))
        if current is not None:
            current.append(event)
    return attempts


def training_clock(config: RunConfig, train: dict[str, Any], attempts: list[Attempt]) -> Check:
    """Check the clock of all attempts, and that steps and rates of the stage follow from it."""
    trained = [attempt for attempt in attempts if attempt.first("clock_started")]
    wrong: list[str] = []
    path: list[Reading] = []
    checkpoints: dict[int, float] = {}
    for attempt in trained:
        start = _start(attempt)
        path = [reading for reading in path if reading.step <= start.step]
        checkpoints = {step: at for step, at in checkpoints.items() if step <= start.step}
        wrong += _resumed(start, path, checkpoints)
        wrong += _forward(start, attempt)
        path += attempt.readings()
        checkpoints |= attempt.checkpoints()
    if not trained or not trained[-1].first("clock_stopped"):
        wrong.append("the events do not say when it stopped")
    else:
        wrong += _ended(config, train, trained[-1])
    seconds = train["seconds"]["train: steps"]
    figure = f"{train['steps']:,} steps in {seconds:.1f} s, {len(trained)} attempts"
    return check(_NAME, _CONDITION, not wrong, "; ".join(wrong) or figure, "self-reported")


def _start(attempt: Attempt) -> Reading:
    """Return the clock with which an attempt began."""
    resumed, begun = attempt.first("training_resumed"), attempt.first("clock_started")
    assert begun is not None
    step = resumed["step"] if resumed else 0
    return Reading(step, begun["elapsed_seconds"], begun["time"])


def _resumed(start: Reading, path: list[Reading], checkpoints: dict[int, float]) -> list[str]:
    """Return what is wrong with the clock that a checkpoint gave to an attempt."""
    if start.step == 0:
        return [f"it began at {start.elapsed:.1f} s"] if start.elapsed else []
    if not path:
        return [f"resumed at step {start.step}, which no attempt reached"]
    latest = max(reading.elapsed for reading in path)
    if start.elapsed < latest - _ROUNDED:
        return [f"resumed at step {start.step} with {start.elapsed:.1f} s, after {latest:.1f} s"]
    told = checkpoints.get(start.step, start.elapsed)
    if start.elapsed != told:
        return [
            f"resumed at step {start.step} with {start.elapsed:.3f} s, checkpoint at {told:.3f} s"
        ]
    return []


def _forward(start: Reading, attempt: Attempt) -> list[str]:
    """Return where the clock of an attempt goes back or differs from the times of the events."""
    before, readings = start, attempt.readings()
    if stopped := attempt.first("clock_stopped"):
        readings.append(Reading(stopped["step"], stopped["elapsed_seconds"], stopped["time"]))
    for reading in readings:
        if reading.step < before.step or reading.elapsed < before.elapsed - _ROUNDED:
            return [f"it goes back at step {reading.step}"]
        passed = reading.elapsed + reading.writing - start.elapsed
        wall = reading.time - start.time
        if not abs(passed - wall) <= max(_MAX_SECONDS, _MAX_SHARE * wall):
            return [f"{passed:.1f} s until step {reading.step}, {wall:.1f} s by the events"]
        before = reading
    return []


def _ended(config: RunConfig, train: dict[str, Any], last: Attempt) -> list[str]:
    """Return where steps, seconds and rates of the stage differ from the end of its clock."""
    stopped, start, batch = last.first("clock_stopped"), _start(last), config.train.batch_tokens
    assert stopped is not None
    wrong: list[str] = []
    if train["steps"] != stopped["step"] or train["tokens"] != stopped["step"] * batch:
        wrong.append(f"{train['steps']} steps, {stopped['step']} in the events")
    if config.train.max_steps and train["steps"] != config.train.max_steps:
        wrong.append(f"{train['steps']} steps of {config.train.max_steps}")
    booked, stopped_at = train["seconds"]["train: steps"], stopped["elapsed_seconds"]
    if booked != stopped_at:
        wrong.append(f"{booked:.3f} s of steps, but it stopped at {stopped_at:.3f} s")
    writing = sum(e["seconds"] for e in last.events if e["event"] == "checkpoint")
    seconds, rates = last.own_steps - writing, train["tokens_per_second"]
    tokens = (stopped["step"] - start.step) * batch
    if set(rates) != {"train", "train_recurrence_off", "train_recurrence_on"}:
        wrong.append("other rates than those of training")
    elif (rates["train"] is None) != (tokens == 0):
        wrong.append("no rate of training, or of no steps")
    elif tokens:
        if not abs(tokens / rates["train"] / seconds - 1) <= _MAX_RATE_ERROR:
            rate = f"{rates['train']:,.0f} tokens per second"
            wrong.append(f"{tokens:,} tokens in {seconds:.1f} s are not {rate}")
        wrong += _parts(config, rates, start.step, stopped["step"])
    return wrong


def _parts(config: RunConfig, rates: dict[str, float | None], first: int, last: int) -> list[str]:
    """Return whether the rates with and without recurrence do not lead to that of all steps."""
    off, on, both = (rates[f"train{name}"] for name in ("_recurrence_off", "_recurrence_on", ""))
    assert both is not None
    if off is None or on is None:
        good = both in (off, on)
    elif config.train.max_steps:
        begins = config.train.recurrence_from * config.train.max_steps
        without = sum(step < begins for step in range(first, last)) / (last - first)
        good = abs(without * both / off + (1 - without) * both / on - 1) <= _MAX_RATE_ERROR
    else:
        good = min(off, on) <= both <= max(off, on)
    return [] if good else ["rates with and without recurrence do not lead to that of all steps"]
