"""Progress on a terminal, which redraws one line, and elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramgolf.cli import live
from paramgolf.cli.live import LiveReporter, seconds_of_stages
from paramgolf.recipes import RECIPES
from paramgolf.runtime import console
from paramgolf.runtime.console import COLUMNS, Reporter
from paramgolf.runtime.rundir import RunDir

TINY = RECIPES["tiny"][1]
DETAILS = "step 123,456  loss 12.3456"


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (console, live):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Terminal(io.StringIO):
    """Takes all that is written as a terminal would."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal of 80 columns."""
    monkeypatch.setattr(live, "_columns", lambda stream: 80)
    yield Terminal()
    live.clear()


def screen_lines(written: str) -> list[str]:
    """All lines that were ever visible."""
    return [line for line in re.split(r"[\r\n]+", written.replace("\x1b[K", "")) if line]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_live_line_fits_the_terminal(
    clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(live, "_columns", lambda stream: columns)
    reporter = LiveReporter(terminal)
    reporter.status = lambda: "[training 59:59 of 1:00:00]"
    progress = reporter.progress("train", 1e9, "tokens")
    for number in range(5):
        clock.now += 1
        progress.update(10.0**number, details=DETAILS, rate=12_345_678)
    reporter.line("train     done")
    written = terminal.getvalue()
    lines = screen_lines(written)
    assert len(lines) == 6
    assert max(map(len, lines)) < columns
    assert lines[-1] == "train     done"
    # Each line replaces the one before, and none is left behind.
    assert written.count("\n") == 1
    assert all("loss" in line for line in lines[:-1]) == (columns > 40)


def test_live_line_is_not_redrawn_more_often_than_ten_times_per_second(
    clock: Clock, terminal: Terminal
) -> None:
    progress = LiveReporter(terminal).progress("train", 1000)
    for number in range(1000):
        clock.now += 0.01
        progress.update(number)
    assert 50 <= len(screen_lines(terminal.getvalue())) <= 100


@pytest.mark.parametrize("kind", [Reporter, LiveReporter])
def test_a_line_every_30_s_without_a_terminal(clock: Clock, kind: type[Reporter]) -> None:
    stream = io.StringIO()
    reporter = kind(stream)
    # Seven phases of a stage, each too short for a line of its own.
    for number in range(7):
        progress = reporter.progress(f"phase {number}", 100, "targets")
        for done in range(10):
            clock.now += 1
            progress.update(10 * done, details=DETAILS, rate=12_345_678)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= COLUMNS
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue())


def test_remaining_time(clock: Clock) -> None:
    progress = Reporter().progress("train", 100)
    progress.update(40)  # done before an interruption
    assert progress.seconds_left() is None
    clock.now += 30
    progress.update(60)
    assert progress.seconds_left() == pytest.approx(60)
    assert progress.parts()[-1] == "1:00 left"


def test_remaining_time_of_the_run(clock: Clock, terminal: Terminal, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", "tiny", TINY)
    splits = {"train": 600_000, "val": 90_000, "adapt": 60_000}
    text = {"splits": {name: {"tokens": tokens} for name, tokens in splits.items()}}
    run.finish_stage("prepare", {"text": text})
    assert seconds_of_stages(TINY, run, 0.0) == {}
    expected = seconds_of_stages(TINY, run, 5000.0)
    # Tiny's stages on two cores at 5,145 tokens per second: 40, 14 and 50 seconds.
    assert expected == {
        "train": 0.0,
        "adapt": pytest.approx(42),
        "pack": pytest.approx(13, abs=1),
        "score": pytest.approx(30),
    }
    reporter = LiveReporter(terminal)
    reporter.stage_started("train", TINY, run)
    progress = reporter.progress("train", 600, "steps")
    for step in (1, 101):
        clock.now += 100
        progress.update(step, rate=5000)
    later = sum(expected.values())
    total = console.duration(499 + later)
    assert screen_lines(terminal.getvalue())[-1].endswith(f"8:19 left, run {total}")
