"""The ways in which a packed model scores a text."""

from __future__ import annotations

from typing import NamedTuple

ORDER = "file order, left to right"
"""Of the tokens: what reaches one comes only from tokens that are scored before it."""


class ScoreMode(NamedTuple):
    """Windows, and whether the model learns between chunks."""

    name: str
    """"plain", "sliding" or "score-first"."""
    stage: str
    """Its key under `stages` in results.json."""
    stride: int
    """Of sliding windows; 0: consecutive windows."""
    fixed: bool
    """The model does not learn."""


def score_modes(stride: int, learns: bool) -> list[ScoreMode]:
    """Return the modes of a recipe with this stride; the last one only if it learns."""
    modes = [
        ScoreMode("plain", "quantized", 0, fixed=True),
        ScoreMode("sliding", "sliding", stride, fixed=True),
        ScoreMode("score-first", "score_first", stride, fixed=False),
    ]
    return modes if learns else modes[:2]
