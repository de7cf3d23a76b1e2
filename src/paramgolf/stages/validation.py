"""Score a run's validation text in full precision, after training and after adaptation."""

from __future__ import annotations

from collections.abc import Sequence

from paramgolf.data.tokenizer import Tokenizer
from paramgolf.model.gpt import GPT
from paramgolf.model.order import layer_order
from paramgolf.scoring.bits_per_byte import Score, score_losses
from paramgolf.scoring.windowed import window_losses
from paramgolf.scoring.windows import plain_windows
from paramgolf.stages.job import Job


class Validation:
    """Scores models in memory, in consecutive windows."""

    def __init__(self, job: Job) -> None:
        """Read the validation split."""
        run = job.run
        self._config = job.config
        tokenizer = Tokenizer.load(run.tokenizer)
        self._text = job.text.scored_text(run.data, tokenizer)
        self._impossible = tokenizer.impossible_successors
        self._label = job.label
        self._reporter = job.reporter
        self._ranks = job.runtime.ranks
        self._order = layer_order(job.config.model, recurrent=True)

    def score(self, model: GPT, adapted_on: Sequence[str]) -> Score:
        """Score a model that was trained on the split "train" and adapted on the named splits."""
        progress = self._reporter.progress("score", unit="targets")
        windows = plain_windows(len(self._text.tokens) - 1, self._config.model.seq_len)
        model.leave_out(self._impossible)
        losses = window_losses(
            model,
            self._order,
            self._text.tokens,
            windows,
            self._config.score.batch_tokens,
            progress.update,
            self._ranks,
        )
        label = self._label(adapted_on)
        return score_losses(losses, self._text.bytes, self._text.bytes_are, label)
