"""The audit: recompute what makes a run's score valid (docs/rules.md defines the conditions).

The counted code scores the text again, and modified texts, in processes that contain nothing else.
What it computes is compared with the report, with losses that the audit computes by itself, with
the text, the files and the time ledger.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paramgolf.codefile.build import build
from paramgolf.data.claims import shown_form
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.device import Runtime, threads_of
from paramgolf.runtime.files import read_tensors, write_json
from paramgolf.runtime.records import read_environment
from paramgolf.scoring.bits_per_byte import document_nats
from paramgolf.scoring.modes import ORDER, ScoreMode
from paramgolf.verify.audited_run import AuditedRun, is_bfloat16, load_run, on_gpu
from paramgolf.verify.books import books, limits_in_words, training_in_words
from paramgolf.verify.checks import AUDIT_NAME, Check, at_most, audited_files, check, guarded
from paramgolf.verify.measured import measured
from paramgolf.verify.model_checks import (
    Losses,
    causal_logits,
    every_loss,
    learned_losses,
    losses_of_prefixes,
    vocabulary_text,
)
from paramgolf.verify.noise import Tolerance, inexact, tolerance
from paramgolf.verify.overlap import overlap_checks
from paramgolf.verify.recomputed import SELF_REPORTED, recomputed
from paramgolf.verify.scored_again import CodeFile, CodeFileError
from paramgolf.verify.text_checks import ORIGIN, text_checks

_CONDITIONS = "1 causal, 2 normalised, 3 score before update, 4 one pass"
AUDITED_POSITIONS = 4
"""At which every token of the vocabulary is scored, unless somebody asks for another number."""
_LARGEST_LOSSES = 16
_SAMPLED_LOSSES = 48
_STANDARD_ERRORS = 4
_MAX_SECONDS = 900
"""For the code file to score a text, and twenty times what the run's ledger says."""
_LEARNED = "learned from earlier chunks only"
_INDENT = " " * 15


@dataclass(frozen=True)
class Audit:
    """All checks of a run."""

    checks: list[Check]
    scores: dict[str, dict[str, float | str]]
    """By stage: BPB and label, as reported."""
    form: str
    """What follows the labels if the tokenizer leaves something out of the text."""
    adaptive: bool
    """Whether a score is of a model that learns while it scores."""
    training: str
    """What the run says of its training."""
    limits: str
    """What it is judged by: bytes and seconds, in words."""
    seed: int
    """Of the sampled positions."""
    text: str
    """Hash of the scored text."""
    files: dict[str, str]
    """What the verdict is about; see `checks.audited_files`."""

    @property
    def failed(self) -> list[str]:
        """The conditions that are violated, each once."""
        return list(dict.fromkeys(c.condition for c in self.checks if c.outcome == "FAIL"))

    @property
    def unverified(self) -> list[str]:
        """The names of the checks that could not be recomputed because files are gone."""
        return [c.name for c in self.checks if c.outcome == "not verified"]

    @property
    def passed(self) -> bool:
        """Whether no check failed, and every one was made."""
        return not self.failed and not self.unverified

    def verdict(self) -> list[str]:
        """Return the verdict, one line per statement."""
        stage, score = list(self.scores.items())[-1]
        label = f"{score['label']}{self.form}"
        reported = f"self-reported: {self.training}, hardware and provenance"
        judged = f"within {self.limits}"
        if any(c.name == ORIGIN and c.kind == "self-reported" for c in self.checks):
            judged += "; tokenizer's origin self-reported"
        if self.passed:
            kind = "score-first adaptive" if self.adaptive else "fixed"
            return [
                f"verdict        compliant as {kind} predictor {judged}",
                f"{_INDENT}score verified: {stage} {score['bpb']:.4f} BPB, {label} as far as the "
                f"given training text shows; {reported}",
                f"{_INDENT}with the conditions {_CONDITIONS}: see docs/rules.md",
            ]
        reasons = []
        if self.failed == ["code"]:
            reasons.append(
                "the code file was not recognised; read it, or audit with the version of paramgolf "
                "that built it"
            )
        if self.unverified:
            reasons.append(f"not recomputed, as files are gone: {', '.join(self.unverified)}")
        if self.failed in ([], ["code"]):
            lines = [f"verdict        compliance not verified: {'; '.join(reasons)}"]
        else:
            lines = [f"verdict        NOT compliant: {', '.join(self.failed)}"]
        lines.append(f"{_INDENT}judged by the run's own limits: {judged}")
        lines.append(f"{_INDENT}the conditions are explained in docs/rules.md")
        if any(score["label"] == "in-sample" for score in self.scores.values()):
            lines.append(
                f"{_INDENT}the weights were shaped by scored text: reviewers consider that a "
                "violation of 1 (causal) and 3 (score before update)"
            )
        lines.append(f"{_INDENT}{reported}")
        return lines

    def summary(self) -> list[str]:
        """Return the scores and the verdict, one line each."""
        scores = [
            f"{stage:<14} {s['bpb']:.4f} BPB  {s['label']}{self.form}"
            for stage, s in self.scores.items()
        ]
        return [*scores, f"{'seed':<14} {self.seed}", *self.verdict()]

    def save(self, path: Path) -> None:
        """Write audit.json in the directory of the run.

        Raises:
            UserError: if it cannot be written.
        """
        record: dict[str, Any] = {
            "passed": self.passed,
            "failed": self.failed,
            "unverified": self.unverified,
            "verdict": self.verdict(),
            "seed": self.seed,
            "text": self.text,
            "files": self.files,
            "scores": self.scores,
            "checks": [check._asdict() for check in self.checks],
            "self_reported": SELF_REPORTED,
        }
        write_json(path / AUDIT_NAME, record)


def audit(path: Path, positions: int, seed: int, runtime: Runtime, reporter: Reporter) -> Audit:
    """Audit the run at `path`; nothing is written.

    Args:
        path: a finished run.
        positions: number of positions at which every token of the vocabulary is scored.
        seed: of the sampled positions; `audited_run.fresh_seed` gives one that nobody knew.
        runtime: where to score.
        reporter: the console.

    Raises:
        UserError: if the run is not finished, its artifact, tokenizer or provenance is damaged, or
            the model's losses are not finite.
        ConfigError: if its scored text is gone.
    """
    files = audited_files(path)
    run = load_run(path, positions, seed, runtime, reporter)
    stages = run.results["stages"]
    scores = {
        mode.stage: {key: stages[mode.stage][key] for key in ("bpb", "label")} for mode in run.modes
    }
    environment = read_environment(run.run)
    threads: int | None = environment["cpu_threads"]
    if on_gpu(run, environment) or not 0 < environment["cpu_threads"] <= _cores():
        threads = None
    with threads_of(threads), CodeFile(run.run, runtime.device.type, threads) as code:
        checks = list(_Auditor(run, code, environment, runtime, files).checks())
    return Audit(
        checks,
        scores,
        form=shown_form(run.results["tokenizer"]),
        adaptive=any(not mode.fixed for mode in run.modes),
        training=training_in_words(run.config, run.results),
        limits=limits_in_words(run.recipe, run.config),
        seed=seed,
        text=run.text.sha256,
        files=files,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Auditor:
    """One method per group of checks."""

    run: AuditedRun
    code: CodeFile
    environment: dict[str, Any]
    runtime: Runtime
    files: dict[str, str]
    """SHA-256 of everything that the verdict is about, before anything ran."""
    failure: str = ""
    """Why the code file did not score a text."""
    scored: dict[ScoreMode, Losses] = field(default_factory=dict)
    """By the code file; a mode is missing if it failed."""
    recomputed: dict[ScoreMode, Losses] = field(default_factory=dict)
    """By the audit itself."""

    def checks(self) -> Iterator[Check]:
        """Yield all checks."""
        run = self.run
        for mode in run.modes:
            losses = self._scored(mode, run.stream, f"scoring again {mode.stage}")
            if losses is not None:
                self.scored[mode] = losses
        for mode in run.modes:
            self.recomputed[mode] = self._recomputed(mode)
        yield from guarded(text_checks(run.run, run.config, run.results))
        for mode in run.modes:
            yield from self._score(mode)
            yield from self._losses(mode)
            yield from self._causal_losses(mode)
        yield causal_logits(run)
        yield self._vocabulary()
        if all(mode.fixed for mode in run.modes):
            figure = "a fixed predictor"
            yield Check(_LEARNED, "3 score before update", "not applicable", figure)
        yield self._code_scores()
        yield self._code_recognised()
        yield from guarded(overlap_checks(run.run, run.config, run.results))
        yield from recomputed(run.run, run.config, run.results)
        yield from books(run.run, run.config, run.results)
        yield from measured(run.run, run.config, run.results, self.runtime)
        same = audited_files(run.run.path) == self.files
        figure = "as they were when the audit began" if same else "they changed meanwhile"
        yield check("files stay as they are", "code", same, figure)

    # The code file.

    def _scored(self, mode: ScoreMode, stream: NDArray[np.uint16], part: str) -> Losses | None:
        """Return the losses of a stream by the code file; None, once it has failed."""
        if self.failure:
            return None
        progress = self.run.progress
        limit = _MAX_SECONDS + 20 * progress.seconds[part]
        try:
            losses = self.code.losses(
                stream, mode.stride, mode.fixed, limit, progress.waiting(part)
            )
        except CodeFileError as error:
            self.failure = str(error)
            return None
        progress.update(part, 1)
        return losses

    def _code_scores(self) -> Check:
        figure = f"train_gpt.py does not score model.bin: {self.failure}"
        if not self.failure:
            figure = "train_gpt.py alone, with model.bin, tokenizer and text, computed these losses"
        return check("code file scores the model", "bytes", not self.failure, figure)

    def _code_recognised(self) -> Check:
        same = self.code.content == build(self.run.config)
        figure = (
            "byte for byte what this version of paramgolf builds from config.json"
            if same
            else "the code file is not what this version of paramgolf builds from config.json: "
            "read it, or audit with the version that built it"
        )
        return check("code file recognised", "code", same, figure)

    # Losses and scores.

    def _recomputed(self, mode: ScoreMode) -> Losses:
        """Return the audit's own losses of a mode, in batches of another size than the code's."""
        part, batch = f"every loss {mode.stage}", max(1, self.run.config.score.batch_tokens // 2)
        compute = every_loss if mode.fixed else learned_losses
        losses = compute(
            self.run, mode.stride, batch, lambda share: self.run.progress.update(part, share)
        )
        if not np.isfinite(losses).all():
            raise UserError("the model's losses are not finite")
        return losses

    def _tolerance(self, mode: ScoreMode) -> Tolerance:
        """Return what the reported score of a mode may differ by."""
        run = self.run
        ranks = 1 if mode.fixed else int(run.results["num_ranks"].get("score", 1))
        why = inexact(self.environment, on_gpu(run, self.environment), ranks)
        if mode not in self.scored:
            why = "the code file did not score the text"
        difference = self.scored.get(mode, self.recomputed[mode]) - self.recomputed[mode]
        return tolerance(difference, run.text.bytes, why, not mode.fixed, run.limits)

    def _score(self, mode: ScoreMode) -> Iterator[Check]:
        """Compare the reported score, in total and by document."""
        run, allowed, condition = self.run, self._tolerance(mode), "4 one pass"
        losses = torch.from_numpy(self.scored.get(mode, self.recomputed[mode]))
        bpb = float(losses.sum()) / math.log(2) / run.text.bytes
        reported = run.results["stages"][mode.stage]["bpb"]
        figure = f"{bpb!r} BPB recomputed, {reported!r} reported ({allowed.why})"
        name = f"score recomputed: {mode.stage}"
        yield at_most(name, condition, abs(bpb - reported), allowed.bpb, figure)
        name = f"documents recomputed: {mode.stage}"
        own = document_nats(losses, run.stream, run.predictor.tokenizer.bos)
        try:
            stored = read_tensors(run.run.documents)[0][mode.stage].double().numpy()
        except (UserError, KeyError):
            stored = np.empty(0)
        if stored.shape != own.shape:
            yield check(name, condition, False, f"{run.run.documents.name} has other documents")
            return
        tokens = document_nats(torch.ones_like(losses), run.stream, run.predictor.tokenizer.bos)
        # Six standard deviations: there are many documents.
        limits = 6 * allowed.nats * np.sqrt(tokens) + run.limits.mean_loss * tokens
        difference = np.abs(own - stored)
        worst = float(difference.max())
        figure = f"{len(own):,} losses differ by at most {worst:.1e} nats ({allowed.why})"
        if not allowed.bpb:
            yield at_most(name, condition, worst, 0.0, figure)
        else:
            yield at_most(name, condition, float((difference - limits).max()), 0.0, figure)

    def _losses(self, mode: ScoreMode) -> Iterator[Check]:
        """Compare the losses by the code file with those by the audit."""
        run = self.run
        if mode not in self.scored:
            return
        losses = self.scored[mode]
        difference = losses - self.recomputed[mode]
        if not mode.fixed:
            found = self._compare(_LEARNED, "3 score before update", difference)
            yield found._replace(figure=f"{found.figure}; {ORDER}")
            return
        yield self._compare(f"every loss by log-softmax: {mode.stage}", "2 normalised", difference)
        targets = np.array(run.sample(len(losses), _SAMPLED_LOSSES))
        largest = np.sort(np.argsort(losses)[-_LARGEST_LOSSES:])
        sampled, of_largest = (
            losses_of_prefixes(run, some, mode.stride) - losses[some] for some in (targets, largest)
        )
        # The mean is of the sample alone: the largest losses are those that rounding raised.
        yield self._compare(
            f"one window per target: {mode.stage}", "4 one pass", sampled, of_largest
        )

    def _compare(
        self, name: str, condition: str, differences: Losses, others: Losses | None = None
    ) -> Check:
        """Check differences of losses, singly and on average; of `others`, singly."""
        limits = self.run.limits
        every = differences if others is None else np.concatenate([differences, others])
        worst, mean = float(np.abs(every).max()), float(differences.mean())
        max_mean = limits.mean_loss
        if is_bfloat16(self.run):  # its rounding is noise
            noise = float(differences.std()) / math.sqrt(len(differences))
            max_mean = max(max_mean, _STANDARD_ERRORS * noise)
        figure = (
            f"{len(every):,} losses differ by at most {worst:.1e} nats, by {mean:+.1e} on average "
            f"(limits {limits.loss:.0e}, {max_mean:.0e})"
        )
        excess = float(np.max([worst / limits.loss, abs(mean) / max_mean]))
        return at_most(name, condition, excess, 1.0, figure)

    def _causal_losses(self, mode: ScoreMode) -> Iterator[Check]:
        """Check that no loss changes when later tokens change."""
        run, size, limit = self.run, len(self.run.stream), self.run.limits.causal_loss
        first = int(run.random.integers(max(2, size // 2), max(3, size * 3 // 4 + 1)))
        part = f"other tokens {mode.stage}"
        after = self._scored(mode, run.with_other_tokens(run.stream, first), part)
        if after is None:
            return
        change = float(np.abs(self.scored[mode] - after)[: first - 1].max())
        figure = (
            f"tokens from {first:,} on replaced: earlier losses change by {change:.1e} nats "
            f"(limit {limit:.0e})"
        )
        yield at_most(f"causal losses: {mode.stage}", "1 causal", change, limit, figure)

    def _vocabulary(self) -> Check:
        """Let the code file score every token of the vocabulary at the same position."""
        run, name, condition = self.run, "probabilities sum to 1", "2 normalised"
        if len(run.stream) <= run.seq_len or run.seq_len < 2:
            figure = "the text is shorter than a window"
            return Check(name, condition, "not applicable", figure)
        starts = run.sample(len(run.stream) - run.seq_len, run.positions)
        tokens, targets = vocabulary_text(run, starts)
        losses = self._scored(run.modes[0], tokens, "vocabulary")
        if losses is None:
            return Check(name, condition, "not applicable", "the code file does not score")
        worst = float(np.abs(np.exp(-losses[targets]).sum(axis=1) - 1).max())
        limit = run.limits.probability_sum
        figure = (
            f"{len(starts)} x {run.vocab_size:,} tokens: sums differ from 1 by at most "
            f"{worst:.1e} (limit {limit:.0e})"
        )
        return at_most(name, condition, worst, limit, figure)
