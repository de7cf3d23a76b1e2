"""A text as a piece of HTML, its tokens coloured by their losses as in the report."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from paramgolf.data.tokenizer import Tokenizer
from paramgolf.report.passage import LEVELS_BITS
from paramgolf.report.pieces import Pieces

_STYLE = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
_COLOURS = dict(re.findall(r"--(ink|q\d): (#\w+)", _STYLE.partition("@media")[0]))
"""The report's in the light: a notebook does not say whether it is light or dark."""


class Coloured(str):
    """HTML, which a notebook shows as such.

    All styles are attributes of its elements, so it also works within another page.
    """

    __slots__ = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer, tokens: Sequence[int], nats: Sequence[float]) -> Coloured:
        """Return N consecutive tokens as HTML.

        Args:
            tokenizer: that of the tokens.
            tokens: (N,).
            nats: (N,) their losses.
        """
        pieces = Pieces(tokenizer.model).running(tokens, tokenizer.case_ops)
        spans = "".join(_spans(pieces, nats))
        edges = zip(("0", *(f"{edge:g}" for edge in LEVELS_BITS)), range(9), strict=True)
        legend = "".join(_span(f"\u2009{edge}\u2009", level) for edge, level in edges)
        style = f"padding:10px;background:#fff;color:{_COLOURS['ink']};white-space:pre-wrap"
        return cls(f'<div style="{style}">{spans}\n\n<small>bits, from: {legend}</small></div>')

    def _repr_html_(self) -> str:
        return str(self)


def _spans(pieces: Iterator[tuple[str, str, str]], nats: Sequence[float]) -> Iterator[str]:
    for (text, kind, mark), loss in zip(pieces, nats, strict=True):
        bits = loss / math.log(2)
        shown = text if kind in ("text", "break") else f"[{text}]"
        yield _span(shown + mark, bisect_right(LEVELS_BITS, bits), f"{bits:.2f} bits")


def _span(text: str, level: int, title: str = "") -> str:
    """Return a text with the colour of a level; level 0 has none."""
    colour = f";background:{_COLOURS[f'q{level}']}" if level else ""
    style = f"unicode-bidi:isolate{colour}"
    return Markup('<span style="{}" title="{}">{}</span>').format(style, title, text)
