"""Which tokens can never follow which: their pieces would have been merged.

SentencePiece's BPE joins the two neighbours whose concatenation is the piece of the best score, and
of equals the leftmost. Of a text in which the pieces a and b end up side by side, the characters of
both alone are therefore encoded as a, b: no merge reached across their outer edges. A pair that is
not encoded so follows from no text. The idea of leaving such pairs out of a prediction is that of
modded-nanogpt's PR #350.

Shape suffix: V pieces.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.tokenizer_model import NORMAL, UNUSED, parse_model

MAX_PIECES = 16_384


class _Part(NamedTuple):
    """A piece, or a part of one, while it is encoded."""

    text: str
    rank: float
    """Of the pair that it was joined of, the best first; below all others: a single character."""
    halves: tuple[_Part, ...] = ()


def impossible_successors(model: bytes) -> NDArray[np.bool_] | None:
    """Return whether the second piece never follows the first one, (V, V).

    Only pairs of ordinary pieces are found. None: the model is not BPE, or has unused pieces, which
    are split again, or more than 16,384 pieces (the table would take gigabytes).

    Args:
        model: a serialized SentencePiece model.
    """
    parsed = parse_model(model)
    pieces = parsed.pieces
    split_again = any(piece.type == UNUSED for piece in pieces)
    if not parsed.is_bpe or split_again or len(pieces) > MAX_PIECES:
        return None
    impossible_VV = np.zeros((len(pieces), len(pieces)), np.bool_)
    ranks = {p.text: -p.score for p in pieces if p.type == NORMAL and len(p.text) > 1}
    ends: dict[str, list[tuple[float, int]]] = defaultdict(list)
    begins: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for token, piece in enumerate(pieces):
        whole = _joined(piece.text, ranks) if piece.type == NORMAL else None
        if whole is not None:
            for edges, side in ((ends, -1), (begins, 0)):
                for text, until in _edge(whole, side):
                    edges[text].append((until, token))
    for text, rank in ranks.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            # They are joined once both are there, if neither is part of something longer by then.
            time = max(rank, ranks.get(left, rank), ranks.get(right, rank))
            before = [token for until, token in ends[left] if until > time]
            after = [token for until, token in begins[right] if until >= time]
            impossible_VV[np.ix_(before, after)] = True
    return impossible_VV


def _joined(text: str, ranks: dict[str, float]) -> _Part | None:
    """Return how a piece is put together when it is encoded alone.

    None: it is not, or a part is joined later than what it is a part of.
    """
    parts = [_Part(character, -math.inf) for character in text]
    while len(parts) > 1:
        joined = [ranks.get(left.text + right.text, math.inf) for left, right in pairwise(parts)]
        best = min(range(len(joined)), key=joined.__getitem__)
        left, right = halves = parts[best], parts[best + 1]
        if not max(left.rank, right.rank) < joined[best] < math.inf:
            return None
        parts[best : best + 2] = [_Part(left.text + right.text, joined[best], halves)]
    return parts[0]


def _edge(whole: _Part, side: int) -> Iterator[tuple[str, float]]:
    """Yield every part at an edge, the whole first, and the rank that makes it part of another."""
    until = math.inf
    while True:
        yield whole.text, until
        if not whole.halves:
            return
        until, whole = whole.rank, whole.halves[side]
