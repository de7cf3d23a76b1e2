"""The console of the installed command: on a terminal, one live line; then one line per stage."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any, TextIO

from paramgolf.cli.common import printable
from paramgolf.runtime.console import Progress, Reporter, duration, is_main_rank

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from paramgolf.config import RunConfig
    from paramgolf.runtime.rundir import RunDir

_MIN_BAR, _MAX_BAR = 6, 30
_INDENT = 10
"""Columns of a line's name, and of the indentation of what is wrapped."""

_drawn: TextIO | None = None
"""The terminal on which a live line is visible."""


def standard_output() -> LiveReporter:
    """Return the console of a command's results; on ranks other than 0, it prints nothing."""
    return LiveReporter(sys.stdout if is_main_rank() else None)


def standard_error() -> LiveReporter:
    """Return the console for the progress of commands whose output may be piped elsewhere."""
    return LiveReporter(sys.stderr)


def clear() -> None:
    """Remove the live line, so that something else can be printed."""
    global _drawn
    if _drawn is not None:
        stream, _drawn = _drawn, None
        print("\r\x1b[K", end="", file=stream, flush=True)


class LiveReporter(Reporter):
    """Redraws one line on a terminal; elsewhere it prints a line every 30 s."""

    def __init__(self, stream: TextIO | None) -> None:
        """Print to `stream`; None: print nothing."""
        super().__init__(stream)
        self.verbose = "--verbose" in sys.argv
        self._live = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        if self._live:
            self.seconds_between = 0.1
        self._stage = ""
        self._stage_start = time.monotonic()
        self._config: RunConfig | None = None
        self._run: RunDir | None = None
        self._tokens_per_second = 0.0

    def line(self, text: str) -> None:
        """Print one line, wrapped between words on a terminal; no text in it controls that."""
        text = printable(text, "\n\t")
        if self._live and text:
            text = textwrap.fill(
                text,
                _columns(self._stream),
                subsequent_indent=" " * _INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
        super().line(text)

    def text(self, text: str) -> None:
        """Print a piece of text immediately and unchanged."""
        clear()
        super().text(text)

    def table(self, table: Table) -> None:
        """Print a table; strings in it are no markup, and control no terminal."""
        from rich.console import Console

        class Plain(Console):
            def render_str(self, text: str, **options: Any) -> Text:
                options |= {"markup": False, "emoji": False}
                return super().render_str(printable(text, "\n\t"), **options)

        clear()
        if self._stream is not None:
            width = None if self._stream.isatty() else 100
            Plain(file=self._stream, width=width, highlight=False).print(table)

    def stage_started(self, name: str, config: RunConfig, run: RunDir) -> None:
        """Begin a stage of a run."""
        super().stage_started(name, config, run)
        self._stage, self._stage_start = name, time.monotonic()
        self._config, self._run = config, run
        trained = run.stage_result("train")
        if trained is not None:
            self._tokens_per_second = trained["tokens_per_second"]["train"] or 0.0

    def stage_finished(self, name: str, result: dict[str, Any], seconds: float) -> None:
        """Print what a stage gave."""
        self._stage = ""
        self.line(f"{name:<9} {duration(seconds):>6}  {summary(name, result)}")

    def show(self, progress: Progress) -> None:
        """Redraw the live line, or print a line."""
        global _drawn
        if progress.rate:
            # The average over some 20 steps.
            earlier = self._tokens_per_second or progress.rate
            self._tokens_per_second = 0.95 * earlier + 0.05 * progress.rate
        if not self._live or self._stream is None:
            super().show(progress)
            return
        if _drawn is not self._stream:
            clear()
        line = self._live_line(progress)
        print(f"\r{line}\x1b[K", end="", file=self._stream, flush=True)
        _drawn = self._stream

    def _live_line(self, progress: Progress) -> str:
        """Return name, bar, share, details and remaining time within the terminal's width."""
        amount, *parts, left = progress.parts()
        if not any(parts):
            parts = [amount]
        if self._stage not in ("", progress.name):
            parts.insert(0, progress.name)
        ends = [self._times_left(progress) or left, self.status()]
        width = _columns(self._stream) - 1
        share = min(1.0, progress.done / progress.total) if progress.total else 0.0
        line = f"  {share:4.0%}"
        room = width - len(f"{self._stage or progress.name:<9} ") - _MIN_BAR
        for part in filter(None, [*parts, *ends]):
            if len(line) + len(part) + 2 <= room:
                line += "  " + part
        bar = self._bar(share, min(_MAX_BAR, _MIN_BAR + room - len(line)))
        return f"{self._stage or progress.name:<9} {bar}{line}"[:width]

    def _bar(self, share: float, width: int) -> str:
        encoding = (getattr(self._stream, "encoding", None) or "").lower()
        done, open_ = ("\u2501", "\u2500") if encoding.startswith("utf") else ("#", "-")
        filled = round(share * width)
        return done * filled + open_ * (width - filled)

    def _times_left(self, progress: Progress) -> str:
        """Return the remaining time of the stage and of the run, as far as they are known."""
        left = progress.seconds_left()
        if self._config is None or self._run is None or not self._stage:
            return ""
        seconds = seconds_of_stages(self._config, self._run, self._tokens_per_second)
        if self._stage not in seconds:
            return ""
        stages = list(seconds)
        later = sum(seconds[name] for name in stages[stages.index(self._stage) + 1 :])
        rest = seconds[self._stage] - (time.monotonic() - self._stage_start)
        if left is None or self._stage == "pack":  # whose steps are many and short
            left = max(rest, left or 0.0)
        return f"{duration(left)} left, run {duration(left + later)}"


def _columns(stream: TextIO | None) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream else 80
    except OSError:
        return 80


def seconds_of_stages(config: RunConfig, run: RunDir, rate: float) -> dict[str, float]:
    """Estimate the seconds of the stages from training on, by name; empty before training.

    A forward pass takes a third of a training step on the same tokens; packing takes three times
    as long as its Hessians (12 s on the recipe tiny, where it was 14 s).

    Args:
        config: the configuration.
        run: the run directory, whose text is prepared.
        rate: tokens per second of training; 0: not known yet.
    """
    prepared = run.stage_result("prepare")
    if prepared is None or not rate:
        return {}
    tokens = {name: split["tokens"] for name, split in prepared["text"]["splits"].items()}
    adapt, pack, length = config.adapt, config.pack, config.model.seq_len
    forward = 1 / (3 * rate)
    text = {"none": 0, "adapt": tokens.get("adapt", 0), "scored": tokens["val"]}[adapt.text]
    scorings = (adapt.epochs if adapt.score_every_epoch else 1) if text else 0
    passes = 1 + length / config.score.stride
    if config.score_first.learns:
        learning = config.score_first
        passes += 3 * (learning.optimizer != "none")
        # With adapters, every window is learned from.
        rank = learning.adapter_rank
        passes += 3 * length / learning.adapter_tokens if rank else length / config.score.stride
    return {
        "train": 0.0,
        "adapt": forward * (3 * adapt.epochs * text + scorings * tokens["val"]),
        "pack": 3 * forward * pack.calibration_batches * pack.calibration_batch_tokens,
        "score": forward * passes * tokens["val"],
    }


def summary(name: str, result: dict[str, Any]) -> str:
    """Return in a few words what a stage gave.

    Args:
        name: of the stage.
        result: the stage result.
    """
    scores = list(result.get("scores", {}).values())
    score = ""
    if scores:
        from paramgolf.scoring.bits_per_byte import shown_label

        label = shown_label(scores[-1]["label"], scores[-1]["bytes_are"])
        score = f"{scores[-1]['bpb']:.4f} BPB ({label})"
    match name:
        case "prepare":
            uses = {"train": "to train on", "adapt": "to adapt on", "val": "to score"}
            splits = result["text"]["splits"]
            return "tokens: " + ", ".join(
                f"{splits[split]['tokens']:,} {use}"
                for split, use in uses.items()
                if split in splits
            )
        case "train":
            return f"{result['steps']:,} steps, {result['parameters']:,} parameters, {score}"
        case "adapt":
            epochs = len(result["epochs"])
            return f"{epochs} epochs, {score}" if epochs else "no adaptation"
        case "pack":
            size = result["bytes"]
            return f"{size['total']:,} of {size['budget']:,} bytes"
    return score
