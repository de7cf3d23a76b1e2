"""The page: what it is made of, and the tokens that it shows."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import jinja2

from paramgolf.report.page import TEMPLATES, environment
from paramgolf.report.passage import LEVELS_BITS, short_share
from paramgolf.report.pieces import Pieces
from paramgolf.scoring.predictor import Predictor
from paramgolf.serve.reading import Read
from paramgolf.serve.requests import MAX_TOKENS, PAGE_DEFAULTS
from paramgolf.version import __version__

MAX_CHARS = 10_000
"""Of the text that is typed."""


def page_files(predictor: Predictor, name: str) -> dict[str, tuple[str, bytes]]:
    """Return the files of the page by path: their type and content.

    Args:
        predictor: the model.
        name: what it is called.
    """
    templates = environment()
    templates.loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader("paramgolf.serve"), jinja2.FileSystemLoader(TEMPLATES)]
    )
    page = templates.get_template("serve.html.j2").render(
        name=name,
        parameters=sum(weight.numel() for weight in predictor.model.parameters()),
        seq_len=predictor.artifact.model.seq_len,
        vocab_size=predictor.tokenizer.vocab_size,
        case_ops=predictor.tokenizer.case_ops,
        learns=predictor.learning() is not None,
        levels=LEVELS_BITS,
        max_tokens=MAX_TOKENS,
        max_chars=MAX_CHARS,
        defaults=PAGE_DEFAULTS,
        version=__version__,
    )
    style = "".join(templates.get_template(file).render() for file in ("page.css", "serve.css"))
    script = "".join(templates.get_template(file).render() for file in ("tokens.js", "serve.js"))
    return {
        "/": ("text/html; charset=utf-8", page.encode()),
        "/page.css": ("text/css; charset=utf-8", style.encode()),
        "/page.js": ("text/javascript; charset=utf-8", script.encode()),
    }


def shown(reads: Iterable[Read], predictor: Predictor, size: int) -> Iterator[dict[str, Any]]:
    """Yield tokens as the page shows them, each with its prediction, and sums at the end.

    Args:
        reads: consecutive tokens: those of the text, then those that continue it.
        predictor: the model, of which only the tokenizer is used.
        size: UTF-8 bytes of the text.
    """
    pieces = Pieces(predictor.tokenizer.model)
    read_so_far = list[Read]()
    bits = {True: 0.0, False: 0.0}

    def tokens() -> Iterator[int]:
        for read in reads:
            read_so_far.append(read)
            bits[read.given] += read.nats / math.log(2)
            yield read.token

    for text, kind, mark in pieces.running(tokens(), predictor.tokenizer.case_ops):
        read = read_so_far[-1]
        own = read.nats / math.log(2)
        yield {
            "text": text,
            "kind": kind,
            "mark": mark,
            "level": bisect_right(LEVELS_BITS, own),
            "given": read.given,
            "piece": pieces.alone(read.token),
            "bits": round(own, 4),
            "share": short_share(math.exp(-read.nats)),
            "rank": read.rank,
            "best": [
                [*pieces.alone(token), short_share(share), token == read.token]
                for token, share in zip(read.best, read.shares, strict=True)
            ],
        }
    given = sum(read.given for read in read_so_far)
    yield {
        "end": {
            "given": given,
            "given_bits": bits[True],
            "given_bytes": size,
            "drawn": len(read_so_far) - given,
            "drawn_bits": bits[False],
        }
    }
