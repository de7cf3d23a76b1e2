"""A second implementation of the model and of scoring: NumPy, float64, from exported weights alone.

Written from docs/format.md ("The forward pass"); nothing of paramgolf is imported. Sequences are
computed one by one, heads one by one, windows one by one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float64]
Shape = Any
"""The shape of a model: an object whose attributes are the keys of `model` in config.json."""

Window = tuple[int, list[int]]
"""The start of a window and the targets it scores."""


# The model


class Forward(NamedTuple):
    """What a forward pass yields."""

    stream: Array
    """The final normalised stream, (B, T, D)."""
    inputs: dict[str, list[Array]]
    """By "blocks.<i>.<attention, output, up or down>": what the matrices multiply, (T, C) for
    every sequence and visit."""


def rms_norm(x: Array) -> Array:
    """Divide by the root mean square of the last dimension."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)


def visits(shape: Shape) -> tuple[list[int], list[int]]:
    """Return the blocks in the order of their visits: those of the encoder, of the decoder."""
    order = list(range(shape.loop_last + 1))
    for _ in range(shape.loop_visits - 1):
        order += range(shape.loop_first, shape.loop_last + 1)
    order += range(shape.loop_last + 1, shape.num_layers)
    return order[: len(order) // 2], order[len(order) // 2 :]


def forward(
    weights: dict[str, Array],
    shape: Shape,
    tokens_BT: ArrayLike,
    encoder: Sequence[int],
    decoder: Sequence[int],
    maps_PDD: Array | None = None,
) -> Forward:
    """Compute the stream of sequences of tokens, with blocks visited in the given order.

    `maps_PDD` are what a document has learned: one for every visit, from the last to the first,
    and at the end one for the final stream.
    """
    inputs: dict[str, list[Array]] = {}

    def visit(number: int, layer: int, x: Array, x0: Array) -> Array:
        y = _block(weights, shape, layer, x, x0, inputs)
        places = len(encoder) + len(decoder)
        return y if maps_PDD is None else y + rms_norm(x) @ maps_PDD[places - 1 - number]

    streams = []
    for tokens_T in np.asarray(tokens_BT):
        x0 = rms_norm(weights["embedding"][tokens_T])
        x = x0
        outputs = []
        for number, layer in enumerate(encoder):
            x = visit(number, layer, x, x0)
            outputs.append(x)
        for position, layer in enumerate(decoder):
            if position < len(encoder):  # the last encoder output meets the first decoder block
                skip = weights["skip_weight"][position] * outputs[len(encoder) - 1 - position]
                keep = 1 / (1 + np.exp(-weights["skip_gate"][position]))
                x = keep * x + (1 - keep) * skip
            x = visit(len(encoder) + position, layer, x, x0)
        x = rms_norm(x)
        streams.append(x if maps_PDD is None else x + x @ maps_PDD[-1])
    return Forward(np.stack(streams), inputs)


def _block(
    weights: dict[str, Array],
    shape: Shape,
    layer: int,
    x: Array,
    x0: Array,
    inputs: dict[str, list[Array]],
) -> Array:
    def weight(name: str) -> Array:
        return weights[f"blocks.{layer}.{name}"]

    def note(name: str, value: Array) -> Array:
        inputs.setdefault(f"blocks.{layer}.{name}", []).append(value)
        return value

    mix = weight("stream_mix")
    x = mix[0] * x + mix[1] * x0
    attention_in = note("attention", rms_norm(x) / np.sqrt(layer + 1))
    heads = note("output", attention(attention_in, shape, weight))
    attended = weight("attention_scale") * (heads @ weight("output").T)
    if layer >= shape.parallel_from:
        up_in = attention_in
    else:
        up_in = rms_norm(x + attended) / np.sqrt(layer + 1)
    hidden = note("up", up_in) @ weight("up").T
    hidden = note("down", np.where(hidden > 0, hidden, 0.5 * hidden) ** 2)
    return x + attended + weight("mlp_scale") * (hidden @ weight("down").T)


def attention(x_TD: Array, shape: Shape, weight: Any) -> Array:
    """Return the input of the output matrix: all heads concatenated, (T, D)."""
    T, d = len(x_TD), shape.width // shape.num_heads
    base = shape.rotary_base
    if shape.seq_len < T:
        base *= (T / shape.seq_len) ** (shape.rotary_dims / (shape.rotary_dims - 2))
    later = np.triu(np.ones((T, T), bool), 1)
    result = np.zeros((T, shape.width))
    for head in range(shape.num_heads):
        group = head * shape.num_kv_heads // shape.num_heads
        of_head, of_group = slice(head * d, head * d + d), slice(group * d, group * d + d)
        queries = rms_norm(x_TD @ weight("query")[of_head].T)
        keys = rms_norm(x_TD @ weight("key")[of_group].T)
        values = x_TD @ weight("value")[of_group].T
        queries = rotate_rows(queries, shape.rotary_dims, base) * weight("query_gain")[head]
        keys = rotate_rows(keys, shape.rotary_dims, base)
        scores = np.where(later, -np.inf, queries @ keys.T / np.sqrt(d))
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        y = shares / shares.sum(axis=1, keepdims=True) @ values
        own = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        result[:, of_head] = y - (y * own).sum(axis=1, keepdims=True) * own
    return result


def rotate_rows(x_Td: Array, dims: int, base: float) -> Array:
    """Row t rotated by t * base^(-2i/dims) in the planes (i, i + dims / 2), as complex numbers."""
    half = dims // 2
    frequencies = base ** (-2.0 * np.arange(half) / dims)
    turns = np.exp(1j * np.arange(len(x_Td))[:, None] * frequencies)
    turned = (x_Td[:, :half] + 1j * x_Td[:, half:dims]) * turns
    return np.concatenate([turned.real, turned.imag, x_Td[:, dims:]], axis=1)


def nats(
    stream_BTD: Array,
    embedding_VD: Array,
    targets_BT: ArrayLike,
    softcap: float,
    impossible_BTV: ArrayLike = False,
) -> Array:
    """Minus the log-probability of every target, (B, T)."""
    logits = softcap * np.tanh(stream_BTD @ embedding_VD.T / softcap)
    impossible = np.broadcast_to(impossible_BTV, logits.shape)
    possible = np.where(impossible, 0.0, np.exp(logits))
    left = 1 - impossible.sum(axis=-1, keepdims=True) / 2**24
    probabilities = possible / possible.sum(axis=-1, keepdims=True) * left + impossible / 2**24
    targets = np.asarray(targets_BT)[..., None]
    return -np.log(np.take_along_axis(probabilities, targets, -1)[..., 0])


# Scoring


def plain_windows(num_targets: int, length: int) -> list[Window]:
    """Return consecutive windows."""
    windows: list[Window] = []
    for target in range(num_targets):
        if target % length == 0:
            windows.append((target, []))
        windows[-1][1].append(target)
    return windows


def sliding_windows(num_targets: int, length: int, stride: int) -> list[Window]:
    """Return windows that begin every `stride` tokens and score their last `stride` targets."""
    windows: list[Window] = [(0, list(range(min(length, num_targets))))]
    start = stride
    while start + length - stride < num_targets:
        end = min(start + length, num_targets)
        windows.append((start, list(range(start + length - stride, end))))
        start += stride
    return windows


def rolling_windows(num_targets: int, length: int) -> list[Window]:
    """Return consecutive windows of a document, of which the last one ends with it."""
    windows = plain_windows(num_targets, length)
    start, scored = windows[-1]
    windows[-1] = (min(start, max(0, num_targets - length)), scored)
    return windows


def encoded(tokenizer: Path, documents: Iterable[str]) -> list[int]:
    """Return the tokens of a text by SentencePiece alone (no CaseOps): BOS before each document."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    tokens: list[int] = []
    for document in documents:
        tokens += [processor.bos_id(), *processor.encode(document)]
    return tokens


def impossible_successors(tokenizer: Path, user_defined: Iterable[str] = ()) -> NDArray[np.bool_]:
    """Return which ordinary piece never follows which, (V, V), by encoding every pair."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    others = (processor.is_control, processor.is_unknown, processor.is_byte, processor.is_unused)
    size = processor.vocab_size()
    texts = {
        token: processor.id_to_piece(token).replace("\u2581", " ")
        for token in range(size)
        if not any(is_other(token) for is_other in others)
        and processor.id_to_piece(token) not in user_defined
    }
    impossible = np.zeros((size, size), dtype=bool)
    for first, text in texts.items():
        pairs = processor.encode([text + other for other in texts.values()])
        for second, pieces in zip(texts, pairs, strict=True):
            impossible[first, second] = pieces != [first, second]
    return impossible


class Scorer:
    """Scores with the weights that `paramgolf export` wrote into a folder."""

    def __init__(self, folder: Path, impossible_VV: NDArray[np.bool_] | None = None) -> None:
        """Read config.json and model.safetensors; take what `impossible_successors` returned."""
        values = json.loads((folder / "config.json").read_text())["model"]
        self.shape = SimpleNamespace(**values)
        tensors = load_file(folder / "model.safetensors")
        self.impossible_VV = (
            np.zeros((self.shape.vocab_size,) * 2, bool) if impossible_VV is None else impossible_VV
        )
        self.weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def losses(self, tokens: Sequence[int], stride: int) -> Array:
        """Return the loss of every token but the first in nats.

        Args:
            tokens: N + 1 of them, each document after BOS.
            stride: of sliding windows; 0: consecutive windows.

        Returns:
            (N,)
        """
        num_targets, length = len(tokens) - 1, self.shape.seq_len
        if stride:
            return self._losses(tokens, sliding_windows(num_targets, length, stride))
        return self._losses(tokens, plain_windows(num_targets, length))

    def rolling_losses(self, tokens: Sequence[int]) -> Array:
        """Return the losses of one document in the windows of lm-evaluation-harness, (N,)."""
        return self._losses(tokens, rolling_windows(len(tokens) - 1, self.shape.seq_len))

    def _losses(self, tokens: Sequence[int], windows: Iterable[Window]) -> Array:
        shape, ids = self.shape, np.array(tokens)
        num_targets, length = len(ids) - 1, shape.seq_len
        encoder, decoder = visits(shape)
        losses = np.full(num_targets, np.nan)
        for start, scored in windows:
            assert np.isnan(losses[scored]).all(), "each target is scored once"
            targets = ids[None, start + 1 : start + 1 + length]
            read = ids[None, start : start + targets.shape[1]]
            stream = forward(self.weights, shape, read, encoder, decoder).stream
            found = nats(
                stream,
                self.weights["embedding"],
                targets,
                shape.logit_softcap,
                self.impossible_VV[read],
            )[0]
            losses[scored] = found[np.array(scored) - start]
        return losses


def bits_per_byte(losses: Array, documents: Iterable[str]) -> float:
    """Return the bits of all losses over the bytes of the documents."""
    return float(losses.sum()) / math.log(2) / sum(len(text.encode()) for text in documents)
