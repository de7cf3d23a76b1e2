"""A text coded as a stream of bits under the model's predictions: the proof of a score.

Encoder and decoder compute every distribution from the preceding tokens alone, in tensors of the
same shapes, so that they agree to the last bit. A predictor that peeks ahead or does not normalise
cannot be decoded. The windows are those of the score.

Shape suffixes: B windows side by side, T time, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from paramgolf.compress.entropy import Coder, Integers, known_at
from paramgolf.config import ScoreFirstConfig
from paramgolf.errors import UserError
from paramgolf.model.gpt import GPT
from paramgolf.model.order import LayerOrder
from paramgolf.runtime.device import reproducible
from paramgolf.scoring.adapters import Adapters, window_of_chunk
from paramgolf.scoring.next_token import NextToken
from paramgolf.scoring.score_first import by_windows, score_then_learn
from paramgolf.scoring.windows import Windows


class Coded(NamedTuple):
    """A coded or decoded stream of N targets."""

    tokens: Integers
    """(N + 1,)"""
    heads: NDArray[np.int64]
    """Positions of the tokens that were coded with all tokens equally likely."""


def code_tokens(
    model: GPT,
    order: LayerOrder,
    coder: Coder,
    windows: Sequence[Windows],
    first: int,
    num_targets: int,
    known: Integers | None,
    lanes: int = 1,
    learning: ScoreFirstConfig | None = None,
    of_targets: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Coded:
    """Encode or decode a stream of tokens in the order of its windows or, with adapters, documents.

    With several lanes, the windows are split into as many runs of consecutive windows, and all
    lanes take their next window side by side. The token that a lane starts with is not known yet
    at that point. It is coded in advance, with all tokens equally likely, and is skipped when the
    previous lane reaches it.

    Args:
        model: on its device, not accelerated; both sides need the same machine.
        order: the layer order.
        coder: an `Encoder` if the tokens are known, otherwise a `Decoder`.
        windows: from `plain_windows` or, with one lane, from `sliding_windows`.
        first: the token before the first target.
        num_targets: N.
        known: (N + 1,) the tokens; None to decode.
        lanes: 1 unless every window scores all that it predicts.
        learning: how the model learns between chunks; None: it is fixed.
        of_targets: targets of the text that this is the beginning of; 0: this is all of it.
        progress: called with the number of targets coded and the total.
    """
    adapters = Adapters(model, order, learning) if learning and learning.adapter_rank else None
    coding = _Coding(model, order, coder, first, num_targets, known, lanes, progress, adapters)
    with reproducible():
        if learning is None:
            coding.code(windows)
        else:
            code_part = coding.code_documents
            if adapters is None:
                code_part = by_windows(windows, num_targets, model, learning, coding.code)
            how = (num_targets, code_part, lambda: coding.tokens)
            score_then_learn(model, order, learning, *how, of_targets=of_targets)
    return Coded(coding.tokens[: num_targets + 1], np.concatenate(coding.heads))


class _Coding:
    """The tokens of one stream that are known so far."""

    def __init__(
        self,
        model: GPT,
        order: LayerOrder,
        coder: Coder,
        first: int,
        num_targets: int,
        known: Integers | None,
        lanes: int,
        progress: Callable[[int, int], None] | None,
        adapters: Adapters | None,
    ) -> None:
        self._config, self._next_token = model.config, NextToken(model, order, adapters)
        self._adapters, self._device = adapters, model.embedding.device
        self._coder, self._known, self._lanes = coder, known, lanes
        self._num_targets, self._progress = num_targets, progress
        length = num_targets + 1 + model.config.seq_len  # windows may extend past the end
        self.tokens: Integers = np.zeros(length, np.int32)
        self._found = np.zeros(length, bool)
        self._num_found = 0
        self.heads = [np.zeros(0, np.int64)]
        self._put(np.array([0]), np.array([first], np.int32))

    def code(self, windows: Sequence[Windows]) -> None:
        """Code the targets of these windows."""
        for group in windows:
            if len(group.starts):
                self._code_group(group)

    def code_documents(self, first: int, until: int) -> int:
        """Code the documents that begin at `first` and from there on before `until`.

        Returns the end of the last one.
        """
        while first < until:
            first = self._code_document(first)
        return first

    def _code_document(self, begin: int) -> int:
        assert self._adapters is not None
        self._adapters.begin(1)
        size, known = self._adapters.chunk_size, begin
        for chunk in itertools.count():
            start, end = window_of_chunk(begin, chunk, size, self._config.seq_len)
            known = self._code_side_by_side(np.array([start]), size, end - start)
            # A document ends with the first token of the next one.
            if known < end or self.tokens[end] == self.tokens[0] or end == self._num_targets:
                return known
            window = torch.from_numpy(self.tokens[start : end + 1]).to(self._device)[None]
            self._adapters.learn(self._adapters.nats(window[:, :-1], window[:, -size:]))
        raise AssertionError

    def _code_group(self, group: Windows) -> None:
        starts, scored = group
        runs = np.array_split(starts, min(self._lanes, len(starts)))
        heads = np.array([run[0] for run in runs[1:]], np.int64)
        limits = np.full(len(heads), self._config.vocab_size, np.int32)
        self._put(heads, self._coder.code_below(limits, known_at(self._known, heads)))
        self.heads.append(heads)
        for turn in range(len(runs[0])):
            side_by_side = np.array([run[turn] for run in runs if turn < len(run)])
            self._code_side_by_side(side_by_side, scored, self._config.seq_len)

    def _put(self, positions: NDArray[np.int64], tokens: Integers) -> None:
        self.tokens[positions] = tokens
        self._found[positions] = True
        self._num_found += len(positions)

    def _code_side_by_side(self, starts: NDArray[np.int64], scored: int, length: int) -> int:
        """Code the targets of windows whose contexts are all known.

        With adapters, stop behind the first token of a document; return how far the first window
        was coded.
        """
        context, targets = length - scored, starts
        self._next_token.begin(len(starts))
        logits_BV = self._read(starts[:, None] + np.arange(context + 1))
        for offset in range(context, length):
            if not (starts + offset < self._num_targets).any():
                break
            targets = starts + offset + 1  # as positions in the stream
            shares_BV = logits_BV.double().softmax(-1).cpu().numpy()
            if not np.isfinite(shares_BV).all():
                raise UserError("the model's losses are not finite")
            for position, shares in zip(targets.tolist(), shares_BV, strict=True):
                if position <= self._num_targets and not self._found[position]:
                    at = np.array([position])
                    self._put(at, self._coder.code(shares, 1, known_at(self._known, at)))
            if self._adapters is not None and self.tokens[targets[0]] == self.tokens[0]:
                break
            if offset + 1 < length:
                logits_BV = self._read(targets[:, None])
            if self._progress is not None:
                self._progress(self._num_found - 1, self._num_targets)
        return int(targets[0])

    def _read(self, positions_BT: NDArray[np.int64]) -> torch.Tensor:
        return self._next_token.read(torch.from_numpy(self.tokens[positions_BT]))
