"""The audit's own computation of losses, by log-softmax from the windows that the rules name.

Nothing of `scoring.windows`, `scoring.windowed` and the model's loss is used here: only the forward
pass to the logits.

Shape suffixes: N targets, T positions, D width, V vocabulary, M some targets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramgolf.model.gpt import Adapt
from paramgolf.runtime.device import reproducible
from paramgolf.scoring.adapters import Adapters
from paramgolf.scoring.predictor import Predictor
from paramgolf.scoring.score_first import Learner, restored
from paramgolf.verify.audited_run import AuditedRun
from paramgolf.verify.checks import Check, at_most

Losses = NDArray[np.float64]
Integers = NDArray[np.int64]

_ROWS_PER_PASS = 16
_LOGIT_ROWS = 4096
_SAMPLED_WINDOWS = 8


def window_of(targets_M: Integers, seq_len: int, stride: int) -> Integers:
    """Return the start of the window that scores each target; stride 0: consecutive windows."""
    if not stride:
        return targets_M // seq_len * seq_len
    return np.maximum(0, -(-(targets_M + 1 - seq_len) // stride) * stride)


def every_loss(
    run: AuditedRun, stride: int, batch_tokens: int, progress: Callable[[float], None]
) -> Losses:
    """Return the loss of every target under the fixed model in nats, (N,)."""
    targets = np.arange(len(run.stream) - 1)
    losses = np.full(len(targets), np.nan)
    for done, some, found in _losses_of(run, targets, stride, batch_tokens):
        losses[some] = found
        progress(done / len(targets))
    return losses


def learned_losses(
    run: AuditedRun, stride: int, batch_tokens: int, progress: Callable[[float], None]
) -> Losses:
    """Return every loss with weights that learned again, from earlier chunks alone, (N,).

    A window belongs to the chunk of the first target that it scores.
    """
    if run.config.score_first.adapter_rank:
        return _document_losses(run, progress)
    learning, stream = run.config.score_first, run.stream
    num_targets, size = len(stream) - 1, learning.chunk_tokens
    count = -(-num_targets // size)
    targets = np.arange(num_targets)
    starts = window_of(targets, run.seq_len, stride)
    _, first_of_window = np.unique(starts, return_index=True)
    first_scored = first_of_window[np.searchsorted(starts[first_of_window], starts)]
    losses = np.full(num_targets, np.nan)
    model, order = run.predictor.model, run.predictor.order
    with restored(model):
        learner = Learner(model, order, learning, count)
        for chunk in range(count):
            if chunk:
                learner.learn(chunk - 1, stream[: chunk * size + 1])
            own = targets[first_scored // size == chunk]
            for _, some, found in _losses_of(run, own, stride, batch_tokens, run.predictor):
                losses[some] = found
            progress((chunk + 1) / count)
    return losses


def _document_losses(run: AuditedRun, progress: Callable[[float], None]) -> Losses:
    """Return every loss with matrices that each document learned again, one after the other, (N,).

    In the order of the text. What is learned from is cut out of the text up to there.
    """
    learning, stream, size = run.config.score_first, run.stream, run.config.score_first.chunk_tokens
    num_targets, losses = len(stream) - 1, []
    bounds = [*np.flatnonzero(stream[:-1] == run.predictor.tokenizer.bos).tolist(), num_targets]
    model, order = run.predictor.model, run.predictor.order
    adapters, chunk = Adapters(model, order, learning), 0
    with restored(model), reproducible():
        learner = Learner(model, order, learning, -(-num_targets // size))
        for begin, end in itertools.pairwise(bounds):
            while learning.optimizer != "none" and (chunk + 1) * size <= begin:
                learner.learn(chunk, stream[: begin + 1])
                chunk += 1
            adapters.begin(1)
            for first in range(begin, end, learning.adapter_tokens):
                last = first + learning.adapter_tokens
                window = stream[max(begin, last - run.seq_len) : min(last, end)]
                targets = np.arange(first, min(last, end))
                hidden_TD = _hidden(run.predictor, window[None], adapters)[0]
                losses.append(_nats(run, run.predictor, hidden_TD[-len(targets) :], targets))
                if last < end:
                    known = torch.from_numpy(np.append(window, stream[last]).astype(np.int64))
                    row = known.to(model.embedding.device)[None]
                    adapters.learn(adapters.nats(row[:, :-1], row[:, -len(targets) :]))
            progress(end / num_targets)
    return np.concatenate(losses)


def _losses_of(
    run: AuditedRun,
    targets_M: Integers,
    stride: int,
    batch_tokens: int,
    predictor: Predictor | None = None,
) -> Iterator[tuple[int, Integers, Losses]]:
    """Yield how many targets are done, some targets and their losses, window by window."""
    length, predictor = run.seq_len, predictor or run.accelerated
    rows = max(1, batch_tokens // length)
    starts_M = window_of(targets_M, length, stride)
    # Windows come in order, and every window scores targets that follow one another.
    starts, first = np.unique(starts_M, return_index=True)
    ends = np.append(first[1:], len(targets_M))
    padded = np.concatenate([run.stream, np.zeros(length, np.uint16)])
    for begin in range(0, len(starts), rows):
        some = starts[begin : begin + rows]
        # An accelerated model gets one shape only.
        windows = np.zeros((rows if predictor.model.accelerated else len(some), length), np.uint16)
        windows[: len(some)] = padded[some[:, None] + np.arange(length)]
        chosen = slice(first[begin], ends[begin + len(some) - 1])
        targets, of_window = targets_M[chosen], starts_M[chosen]
        hidden_RTD = _hidden(predictor, windows)
        row = torch.from_numpy(np.searchsorted(some, of_window)).to(hidden_RTD.device)
        place = torch.from_numpy(targets - of_window).to(hidden_RTD.device)
        hidden_MD = hidden_RTD[row, place]
        yield int(ends[begin + len(some) - 1]), targets, _nats(run, predictor, hidden_MD, targets)


@torch.no_grad()
def _hidden(
    predictor: Predictor, windows: NDArray[np.uint16], adapt: Adapt | None = None
) -> Tensor:
    """Return the input of the output head, (R, T, D), for tokens (R, T)."""
    rows = torch.from_numpy(windows.astype(np.int64)).to(predictor.model.embedding.device)
    return predictor.model(rows, predictor.order, adapt=adapt)


@torch.no_grad()
def _nats(run: AuditedRun, predictor: Predictor, hidden_MD: Tensor, targets_M: Integers) -> Losses:
    """Return the loss of each target, (M,), by log-softmax over the tokens that may follow."""
    following, previous = (
        torch.from_numpy(run.stream[targets_M + i].astype(np.int64)).to(hidden_MD.device)
        for i in (1, 0)
    )
    losses: list[Tensor] = []
    for begin in range(0, len(targets_M), _LOGIT_ROWS):
        part = slice(begin, begin + _LOGIT_ROWS)
        logits = predictor.model.logits(hidden_MD[part])
        impossible = run.impossible_VV[previous[part]]
        # The tokens that never follow keep 2^-24 each, and the others have what is left.
        logs = logits.masked_fill(impossible, -torch.inf).log_softmax(1).double()
        logs += torch.log1p(-(impossible.sum(1, keepdim=True).double() * 2**-24))
        logs.masked_fill_(impossible, -24 * math.log(2))
        losses.append(-logs.gather(1, following[part, None])[:, 0])
    return torch.cat(losses).cpu().numpy()


def losses_of_prefixes(run: AuditedRun, targets_M: Integers, stride: int) -> Losses:
    """Return the loss of each target from its window's tokens up to it, and no others."""
    starts_M = window_of(targets_M, run.seq_len, stride)
    losses = []
    for begin in range(0, len(targets_M), _ROWS_PER_PASS):
        targets = targets_M[begin : begin + _ROWS_PER_PASS]
        starts = starts_M[begin : begin + _ROWS_PER_PASS]
        windows = np.zeros((len(targets), run.seq_len), np.uint16)
        for window, start, target in zip(windows, starts, targets, strict=True):
            window[: target + 1 - start] = run.stream[start : target + 1]
        hidden = _hidden(run.predictor, windows)
        last = torch.from_numpy(targets - starts).to(hidden.device)
        chosen = hidden[torch.arange(len(targets), device=hidden.device), last]
        losses.append(_nats(run, run.predictor, chosen, targets))
    return np.concatenate(losses)


@torch.no_grad()
def causal_logits(run: AuditedRun) -> Check:
    """Check that no distribution changes when later tokens change."""
    changes: list[float] = []
    for start in run.sample(max(1, len(run.stream) - run.seq_len), _SAMPLED_WINDOWS):
        window = run.stream[start : start + run.seq_len]
        first = int(run.random.integers(1, len(window)))
        before, after = (
            run.predictor.model.logits(_hidden(run.predictor, tokens[None])[0, :first])
            for tokens in (window, run.with_other_tokens(window, first))
        )
        changes.append(float((before - after).abs().max()))
    change, limit = float(np.max(changes)), run.limits.logit
    figure = f"{len(changes)} windows: logits change by {change:.1e} (limit {limit:.0e})"
    return at_most("causal logits", "1 causal", change, limit, figure)


def vocabulary_text(run: AuditedRun, starts: list[int]) -> tuple[NDArray[np.uint16], Integers]:
    """Return a text in which every token of the vocabulary follows the same tokens.

    In consecutive windows, each holds one token of the vocabulary behind the tokens of the scored
    text from a start on, and a last token that is not looked at.

    Returns:
        tokens: the text.
        targets: (starts, V) the target of each token of the vocabulary.
    """
    length, size = run.seq_len, run.vocab_size
    windows = np.zeros((len(starts), size, length), np.uint16)
    for copies, start in zip(windows, starts, strict=True):
        copies[:, :-1] = run.stream[start : start + length - 1]
        copies[:, -1] = np.arange(size)
    targets = np.arange(len(starts) * size).reshape(len(starts), size) * length + length - 2
    return np.append(windows.ravel(), run.stream[:1]), targets
