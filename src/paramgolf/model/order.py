"""Depth recurrence as data: which block runs when, and which skip connects what."""

from __future__ import annotations

from typing import NamedTuple

from paramgolf.config import ModelConfig


class LayerOrder(NamedTuple):
    """Physical block indices in the order of execution.

    Decoder position i reads the output of encoder position `len(encoder) - 1 - i` through skip
    row i, where there is such a position.
    """

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]


def layer_order(config: ModelConfig, recurrent: bool) -> LayerOrder:
    """Return the order with depth recurrence on or off (PR #1394; three visits: PR #1493)."""
    loop = list(range(config.loop_first, config.loop_last + 1))
    visits = config.loop_visits if recurrent else 1
    layers = [
        *range(config.loop_first),
        *loop * visits,
        *range(config.loop_last + 1, config.num_layers),
    ]
    half = len(layers) // 2
    return LayerOrder(tuple(layers[:half]), tuple(layers[half:]))


def num_skips(config: ModelConfig) -> int:
    """Return the rows of skip weights: both orders share them, recurrence needs the most."""
    return len(layer_order(config, recurrent=True).encoder)
