"""Bits per byte of the scored text and of the documents behind it, under one trigram model.

Settings are chosen on the documents behind the scored text (`data.val_part=rest`). This says how
far apart figures of the two parts are before any model of ours has seen them: an interpolated
trigram model of tokens (absolute discounting) is counted on the training split of a run and scores
both.

Cost: 30 s and 6 GB of memory for 46 M tokens. Needs a run whose text is prepared, with all of the
validation documents behind the scored part as its adaptation split:

    paramgolf run best --until prepare --out runs/prepared
    python scripts/split_difficulty.py --run runs/prepared

Expected: the last remark of docs/experiments/sprints.md (1.7969 and 1.8299 bits per byte).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.shards import read_stream
from paramgolf.data.tokenizer import Tokenizer

Ints = NDArray[np.int64]
DISCOUNT = 0.75


class Counts:
    """How often each context was followed by each token: both coded as numbers."""

    def __init__(self, contexts: Ints, tokens: Ints, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._pairs, self._of_pairs = np.unique(contexts * vocab_size + tokens, return_counts=True)
        pair_contexts = self._pairs // vocab_size
        self._contexts, first = np.unique(pair_contexts, return_index=True)
        self._of_contexts = np.add.reduceat(self._of_pairs, first)
        self._kinds = np.diff(np.append(first, len(self._pairs)))

    def last_tokens(self) -> Ints:
        """The last token of each distinct pair."""
        return self._pairs % self._vocab_size

    def probabilities(
        self, contexts: Ints, tokens: Ints, shorter: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return P(token | context), with what discounting frees spread by a shorter context."""
        pairs = _found(self._pairs, self._of_pairs, contexts * self._vocab_size + tokens)
        totals = _found(self._contexts, self._of_contexts, contexts)
        kinds = _found(self._contexts, self._kinds, contexts)
        mixed = np.maximum(pairs - DISCOUNT, 0) + DISCOUNT * kinds * shorter
        return np.where(totals > 0, mixed / np.maximum(totals, 1), shorter)


def _found(keys: Ints, values: Ints, wanted: Ints) -> Ints:
    places = np.searchsorted(keys, wanted) % len(keys)
    return np.where(keys[places] == wanted, values[places], 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    run = parser.parse_args().run
    tokenizer = Tokenizer((run / "tokenizer.model").read_bytes())
    vocab_size = tokenizer.vocab_size
    streams = {
        split: read_stream(sorted((run / "data").glob(f"*_{split}_*.bin")))
        for split in ("train", "val", "adapt")
    }
    train = streams["train"].astype(np.int64)
    bigrams = Counts(train[:-1], train[1:], vocab_size)
    trigrams = Counts(train[:-2] * vocab_size + train[1:-1], train[2:], vocab_size)
    followers = np.bincount(bigrams.last_tokens(), minlength=vocab_size) + 0.5
    for split in ("val", "adapt"):
        tokens = streams[split].astype(np.int64)
        first, second, targets = tokens[:-2], tokens[1:-1], tokens[2:]
        single = followers[targets] / followers.sum()
        double = bigrams.probabilities(second, targets, single)
        triple = trigrams.probabilities(first * vocab_size + second, targets, double)
        num_bytes = int(tokenizer.token_bytes(streams[split]).sum())
        bits = float(-np.log2(triple).sum()) / num_bytes
        print(f"{split}: {len(targets):,} targets, {num_bytes:,} bytes, {bits:.4f} bits per byte")


if __name__ == "__main__":
    main()
