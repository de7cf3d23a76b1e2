"""The audit: recompute what makes a run's score valid (docs/rules.md defines the conditions).

The scoring stage runs again as a user would run it, in separate processes, on the scored text and
on modified texts. What it reports is compared with the packed model, the text, the files and the
time ledger.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.data.prepared import PreparedText
from paramgolf.data.shards import write_shard
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import Runtime
from paramgolf.runtime.files import read_tensors, write_json
from paramgolf.runtime.records import read_results
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.modes import ScoreMode, score_modes
from paramgolf.scoring.predictor import load_on
from paramgolf.scoring.score_first import Learner, restored
from paramgolf.scoring.windowed import WindowScorer
from paramgolf.scoring.windows import Windows
from paramgolf.verify.books import books, training_in_words
from paramgolf.verify.checks import AUDIT_NAME, Check, audited_files, check
from paramgolf.verify.measured import measured
from paramgolf.verify.overlap import overlap_checks
from paramgolf.verify.recomputed import SELF_REPORTED, recomputed
from paramgolf.verify.text_checks import text_checks

Losses = NDArray[np.float64]

_CONDITIONS = "1 causal, 2 normalised, 3 score before update, 4 one pass"
_WINDOWS_PER_PASS = 16
_MAX_BPB_ERROR = 1e-4
_MAX_LOGIT_CHANGE = 1e-5
_START_SECONDS = 5.0
"""Expected of a process that imports PyTorch and loads the artifact."""
_INDENT = " " * 15


@dataclass(frozen=True)
class Audit:
    """All checks of a run."""

    checks: list[Check]
    scores: dict[str, dict[str, float | str]]
    """By stage: BPB and label, as reported."""
    adaptive: bool
    """Whether a score is of a model that learns while it scores."""
    training: str
    """What the run says of its training."""

    @property
    def failed(self) -> list[str]:
        """The conditions that are violated, each once."""
        return list(dict.fromkeys(c.condition for c in self.checks if c.outcome == "FAIL"))

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def verdict(self) -> list[str]:
        """Return the verdict, one line per statement."""
        if self.passed:
            kind = "score-first adaptive" if self.adaptive else "fixed"
            lines = [f"verdict        compliant as {kind} predictor"]
            lines.append(f"{_INDENT}with the conditions {_CONDITIONS}: see docs/rules.md")
        else:
            lines = [f"verdict        NOT compliant: {', '.join(self.failed)}"]
            lines.append(f"{_INDENT}the conditions are explained in docs/rules.md")
        if "provenance" in self.failed:
            lines.append(
                f"{_INDENT}the weights were shaped by scored text: reviewers consider that a "
                "violation of 1 (causal) and 3 (score before update)"
            )
        lines.append(f"{_INDENT}self-reported: {self.training}, and provenance")
        lines.append(f"{_INDENT}only rerunning the job can verify what is self-reported")
        return lines

    def summary(self) -> list[str]:
        """Return the scores and the verdict, one line each."""
        scores = [
            f"{stage:<14} {s['bpb']:.4f} BPB  {s['label']}" for stage, s in self.scores.items()
        ]
        return scores + self.verdict()


def audit(path: Path, positions: int, runtime: Runtime, reporter: Reporter) -> Audit:
    """Audit the run at `path` and write audit.json there.

    Args:
        path: a finished run.
        positions: number of positions at which every token of the vocabulary is scored.
        runtime: where to score.
        reporter: the console.

    Raises:
        UserError: if the run is not finished, or its artifact or provenance is damaged.
    """
    auditor = _Auditor(path, positions, runtime, reporter)
    stages = auditor.results["stages"]
    scores = {
        mode.stage: {key: stages[mode.stage][key] for key in ("bpb", "label")}
        for mode in auditor.modes
    }
    adaptive = any(not mode.fixed for mode in auditor.modes)
    training = training_in_words(auditor.config, auditor.results)
    result = Audit(list(auditor.checks()), scores, adaptive, training)
    text = read_tensors(auditor.run.documents)[1]["text_sha256"]
    write_json(
        path / AUDIT_NAME,
        {
            "passed": result.passed,
            "failed": result.failed,
            "verdict": result.verdict(),
            "seed": auditor.config.seed,
            "text": text,
            "files": audited_files(path),
            "scores": scores,
            "checks": [check._asdict() for check in result.checks],
            "self_reported": SELF_REPORTED,
        },
    )
    return result


class _Progress:
    """Reports how much of the audit is done, by the seconds that its long parts should take."""

    def __init__(self, reporter: Reporter, seconds: dict[str, float]) -> None:
        """Start; `seconds` are those expected of each part, in order."""
        self._seconds = seconds
        self._total = sum(seconds.values())
        self._progress = reporter.progress("audit", 100, "%")

    def update(self, part: str, share: float) -> None:
        """Report that this share of a part is done, and everything before that part."""
        parts = list(self._seconds)
        before = sum(self._seconds[name] for name in parts[: parts.index(part)])
        percent = 100 * (before + min(share, 1) * self._seconds[part]) / self._total
        self._progress.update(percent, details=f"{part} ({parts.index(part) + 1} of {len(parts)})")


class _Auditor:
    """The loaded run, and one method per group of checks."""

    def __init__(self, path: Path, positions: int, runtime: Runtime, reporter: Reporter) -> None:
        self.run, _, self.config = RunDir.open(path)
        if not self.run.results_file.exists():
            raise UserError(f"{path} is not finished: `paramgolf run --resume {path}` first")
        self.results = read_results(self.run)
        self._positions = positions
        self._device = runtime.device.type
        self._runtime = runtime
        # The windows scored here have many different shapes: compiling would not pay.
        runtime = dataclasses.replace(runtime, compiled=False)
        self._predictor = load_on(self.run.artifact, None, runtime)
        self._tokenizer = self._predictor.tokenizer
        text = PreparedText.of(self.run).found_text(self.run.data, self._tokenizer)
        self._stream, self._texts = text.tokens, text.texts
        self._num_bytes = sum(len(text.encode()) for text in self._texts)
        self._random = np.random.default_rng(self.config.seed)
        self._seq_len = self.config.model.seq_len
        self.modes = score_modes(self.config.score.stride, self.config.score_first.learns)
        self._exact = runtime.dtype is not torch.bfloat16
        self._max_difference = 1e-4 if self._exact else 0.3
        """Between losses of one token in batches of different shapes (rounding), in nats."""
        self._sampled_losses = 48 if self._exact else 1024
        self._seconds = self._expected_seconds()
        self._progress = _Progress(reporter, self._seconds)

    def _expected_seconds(self) -> dict[str, float]:
        """Return what the long parts should take, from the seconds of the run, in order."""
        by_phase, rates = self.results["seconds"], self.results["tokens_per_second"]
        scoring = {mode: by_phase.get(f"score: {mode.stage}", 1.0) for mode in self.modes}
        parts = {
            f"{what} {mode.stage}": _START_SECONDS + seconds
            for what in ("scoring again", "other tokens")
            for mode, seconds in scoring.items()
        }
        tokens = self._positions * self._tokenizer.vocab_size * self._seq_len
        parts["vocabulary"] = tokens / rates.get("score_quantized", 10_000)
        if self.config.score_first.learns:
            parts["learning again"] = max(scoring.values())
        return parts

    def checks(self) -> Iterator[Check]:
        """Yield all checks."""
        yield from text_checks(self.run, self.config, self.results)
        yield from self._scores_again()
        yield from self._causal_losses()
        yield self._causal_logits()
        yield self._normalised()
        yield from self._one_pass()
        yield self._score_before_update()
        yield from overlap_checks(self.run, self.config, self.results)
        yield from recomputed(self.run, self.config, self.results)
        yield from books(self.run, self.config, self.results)
        yield from measured(self.run, self.config, self.results, self._runtime)

    @cached_property
    def _losses(self) -> dict[str, Losses]:
        """Losses of all targets by stage, from scoring the text again."""
        return {
            mode.stage: self._scored(mode, self._stream, "scoring again") for mode in self.modes
        }

    def _scored(self, mode: ScoreMode, stream: NDArray[np.uint16], what: str) -> Losses:
        """Return the losses that `paramgolf score`, in a separate process, reports of a stream."""
        with tempfile.TemporaryDirectory(prefix="paramgolf-audit-") as name:
            text, losses = Path(name) / "text_val_000000.bin", Path(name) / "losses.npy"
            write_shard(text, stream)
            command = [sys.executable, "-m", "paramgolf", "score", str(self.run.artifact.resolve())]
            command += [str(text), "--stride", str(mode.stride), "--losses", str(losses)]
            command += ["--device", self._device, *(["--fixed"] if mode.fixed else [])]
            self._run(command, f"{what} {mode.stage}")
            return np.load(losses)

    def _run(self, command: list[str], part: str) -> None:
        """Run a command that is a part of the audit, and report its progress by the clock."""
        began = time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                while True:
                    share = (time.monotonic() - began) / self._seconds[part]
                    self._progress.update(part, min(share, 0.95))
                    with suppress(subprocess.TimeoutExpired):
                        _, errors = process.communicate(timeout=1)
                        break
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise UserError(f"scoring again failed: {errors.strip()[-300:]}")
        self._progress.update(part, 1)

    def _scores_again(self) -> Iterator[Check]:
        """Compare the reported scores with losses and bytes summed here."""
        for mode in self.modes:
            losses = self._losses[mode.stage]
            bpb = float(losses.sum()) / math.log(2) / self._num_bytes
            reported = self.results["stages"][mode.stage]["bpb"]
            good = len(losses) == len(self._stream) - 1 and abs(bpb - reported) <= _MAX_BPB_ERROR
            figure = (
                f"{bpb:.6f} BPB recomputed, {reported:.6f} reported (limit {_MAX_BPB_ERROR:.0e})"
            )
            yield check(f"score recomputed: {mode.stage}", "4 one pass", good, figure)

    def _causal_losses(self) -> Iterator[Check]:
        """Check that no loss changes when later tokens change."""
        size = len(self._stream)
        limit = 1e-5 if self._device == "cpu" else 2e-2
        for mode in self.modes:
            first = int(self._random.integers(size // 2, size * 3 // 4 + 1))
            after = self._scored(mode, self._with_other_tokens(self._stream, first), "other tokens")
            change = float(np.abs(self._losses[mode.stage] - after)[: first - 1].max())
            figure = (
                f"tokens from {first:,} on replaced: earlier losses change by {change:.1e} nats "
                f"(limit {limit:.0e})"
            )
            name = f"causal losses: {mode.stage}"
            yield check(name, "1 causal", change <= limit, figure)

    def _causal_logits(self) -> Check:
        """Check that no distribution changes when later tokens change."""
        change = 0.0
        for start in self._sample(max(1, len(self._stream) - self._seq_len), 8):
            window = self._stream[start : start + self._seq_len]
            first = int(self._random.integers(1, len(window)))
            before, after = (
                self._logits(self._hidden(tokens)[:first])
                for tokens in (window, self._with_other_tokens(window, first))
            )
            change = max(change, float((before - after).abs().max()))
        figure = f"8 windows: logits change by {change:.1e} (limit {_MAX_LOGIT_CHANGE:.0e})"
        good = change <= _MAX_LOGIT_CHANGE
        return check("causal logits", "1 causal", good, figure)

    def _with_other_tokens(self, tokens: NDArray[np.uint16], first: int) -> NDArray[np.uint16]:
        """Return a copy with a random different token at every position from `first` on."""
        shift = self._random.integers(1, self._tokenizer.vocab_size, len(tokens) - first)
        changed = tokens.copy()
        changed[first:] = (tokens[first:] + shift) % self._tokenizer.vocab_size
        return changed

    def _sample(self, count: int, size: int) -> list[int]:
        """Return up to `size` random numbers of 0 .. count - 1, in order."""
        return sorted(self._random.choice(count, min(count, size), replace=False).tolist())

    @torch.no_grad()
    def _hidden(self, tokens: NDArray[np.uint16]) -> Tensor:
        """Return the input of the output head, (..., D), for tokens (..., T)."""
        predictor = self._predictor
        rows = torch.from_numpy(np.atleast_2d(tokens).astype(np.int64))
        hidden = predictor.model(rows.to(predictor.model.embedding.device), predictor.order)
        return hidden.reshape(*tokens.shape, -1)

    @torch.no_grad()
    def _logits(self, hidden: Tensor) -> Tensor:
        return self._predictor.model.logits(hidden)

    def _normalised(self) -> Check:
        """Score every token of the vocabulary at the same position, with the text's scorer."""
        name, condition = "probabilities sum to 1", "2 normalised"
        if len(self._stream) <= self._seq_len:
            figure = "the text is shorter than a window"
            return Check(name, condition, "not applicable", figure)
        starts = self._sample(len(self._stream) - self._seq_len, self._positions)
        worst = 0.0
        for number, start in enumerate(starts):

            def report(share: float, before: int = number) -> None:
                self._progress.update("vocabulary", (before + share) / len(starts))

            worst = max(worst, abs(self._sum_over_vocabulary(start, report) - 1))
        figure = (
            f"{len(starts)} x {self._tokenizer.vocab_size:,} tokens: sums differ from 1 by at most "
            f"{worst:.1e} (limit 1e-04)"
        )
        return check(name, condition, worst <= 1e-4, figure)

    def _sum_over_vocabulary(self, start: int, report: Callable[[float], None]) -> float:
        """Return the total probability of all tokens after one window of the text.

        `report` is called with the share that is done.
        """
        vocab_size, length = self._tokenizer.vocab_size, self._seq_len
        copies = np.empty((vocab_size, length + 1), np.uint16)
        copies[:, :-1] = self._stream[start : start + length]
        copies[:, -1] = np.arange(vocab_size)
        model, order = self._predictor.model, self._predictor.order
        scorer = WindowScorer(
            model, order, copies.ravel(), 32 * length, lambda done, _: report(done / vocab_size)
        )
        begins = np.arange(vocab_size) * (length + 1)
        scorer.score([Windows(begins, 1)])
        nats = scorer.nats[torch.from_numpy(begins + length - 1).to(scorer.nats.device)]
        return float((-nats.double()).exp().sum())

    def _one_pass(self) -> Iterator[Check]:
        """Recompute sampled losses of fixed scores from the one window that the rules give each."""
        for mode in self.modes:
            if not mode.fixed:
                continue
            targets = self._sample(len(self._stream) - 1, self._sampled_losses)
            yield self._compare(
                f"one window per target: {mode.stage}",
                "4 one pass",
                self._recomputed(targets, mode.stride) - self._losses[mode.stage][targets],
            )

    def _compare(self, name: str, condition: str, differences: Losses) -> Check:
        worst, mean = float(np.abs(differences).max()), float(differences.mean())
        # Rounding in bfloat16 is noise: the limit of its mean is four standard errors.
        noise = 4 * float(differences.std()) / math.sqrt(len(differences))
        max_mean = 1e-5 if self._exact else max(1e-3, noise)
        good = worst <= self._max_difference and abs(mean) <= max_mean
        figure = (
            f"{len(differences)} losses differ by at most {worst:.1e} nats, by {mean:+.1e} on "
            f"average (limits {self._max_difference}, {max_mean:.0e})"
        )
        return check(name, condition, good, figure)

    def _recomputed(self, targets: list[int], stride: int) -> Losses:
        """Return the loss of each target by log-softmax, from its window up to it alone."""
        length, stream = self._seq_len, self._stream
        losses: list[Tensor] = []
        for begin in range(0, len(targets), _WINDOWS_PER_PASS):
            some = np.array(targets[begin : begin + _WINDOWS_PER_PASS])
            starts = some // length * length
            if stride:
                starts = np.maximum(0, -(-(some + 1 - length) // stride) * stride)
            windows = np.zeros((len(some), length), np.uint16)
            for window, start, target in zip(windows, starts, some, strict=True):
                window[: target + 1 - start] = stream[start : target + 1]
            last = torch.from_numpy(some - starts)
            logits = self._logits(self._hidden(windows)[range(len(some)), last]).double()
            following = torch.from_numpy(stream[some + 1].astype(np.int64)).to(logits.device)
            losses.append(-logits.log_softmax(1).gather(1, following[:, None])[:, 0])
        return torch.cat(losses).cpu().numpy()

    def _score_before_update(self) -> Check:
        """Recompute losses of every chunk with weights learned from earlier chunks alone."""
        name, condition = "learned from earlier chunks only", "3 score before update"
        learning = self.config.score_first
        if not learning.learns:
            return Check(name, condition, "not applicable", "a fixed predictor")
        num_targets, size = len(self._stream) - 1, learning.chunk_tokens
        count = -(-num_targets // size)
        differences: list[Losses] = []
        mode = next(mode for mode in self.modes if not mode.fixed)
        model, order = self._predictor.model, self._predictor.order
        with restored(model):
            learner = Learner(model, order, learning, count)
            for chunk in range(count):
                if chunk:
                    learner.learn(chunk - 1, self._stream[: chunk * size + 1])
                first, last = chunk * size, min((chunk + 1) * size, num_targets)
                targets = [first + offset for offset in self._sample(last - first, 6)]
                recomputed = self._recomputed(targets, mode.stride)
                differences.append(recomputed - self._losses[mode.stage][targets])
                self._progress.update("learning again", (chunk + 1) / count)
        return self._compare(name, condition, np.concatenate(differences))
