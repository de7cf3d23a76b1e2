"""The overlap of a run's scored text, measured again on the texts themselves."""

from __future__ import annotations

from collections.abc import Callable

from paramgolf.data import overlap
from paramgolf.data.overlap import Overlap
from paramgolf.data.prepared import PreparedText
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.rundir import RunDir


def measured_overlap(
    run: RunDir, progress: Callable[[int, int], None] | None = None
) -> dict[str, Overlap]:
    """Compare a run's scored text with its training and adaptation text, decoded from the shards.

    Args:
        run: a run whose shards are at hand.
        progress: called with the number of tokens compared and the total.

    Returns:
        By text: "train", and "train+adapt" if there is an adaptation split.

    Raises:
        UserError: if a shard or the tokenizer is missing or damaged.
    """
    text, tokenizer = PreparedText.of(run), Tokenizer.load(run.tokenizer)
    return overlap.measured_overlap(text, run.data, tokenizer, progress)
