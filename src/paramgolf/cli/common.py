"""What the commands share."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

from paramgolf.errors import ConfigError

if TYPE_CHECKING:
    from paramgolf.scoring.bits_per_byte import Score

_T = TypeVar("_T")


def choose(what: str, name: str, possible: dict[str, _T]) -> _T:
    """The entry of that name.

    Raises:
        ConfigError: if there is none; it says what is possible.
    """
    if name not in possible:
        close = difflib.get_close_matches(name, possible, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ConfigError(f"there is no {what} {name!r}{hint} Possible: {', '.join(possible)}")
    return possible[name]


def over_original_bytes(score: Score) -> str:
    """What to say beside a score under a tokenizer that normalises; else nothing."""
    if score.original_bytes == score.bytes:
        return ""
    apart = score.original_bpb - score.bpb
    return (
        f"the tokenizer normalises; over the {score.original_bytes:,} bytes of the text as it is, "
        f"{score.original_bpb:.4f} BPB ({apart:+.4f}, {score.label})"
    )


def usage() -> str:
    """All commands and recipes."""
    from paramgolf.recipes import RECIPES

    lines = [
        "usage: paramgolf COMMAND ...",
        "",
        "Train, adapt, quantize, pack and score the best language model that fits a byte budget.",
        "",
        "commands:",
        "  run RECIPE [--KEY VALUE ...]     from text to a scored artifact; `run tiny` to begin",
        "  run --resume DIR                 go on after the last finished stage",
        "  score ARTIFACT FILE...           bits per byte of any text",
        "  generate ARTIFACT --prompt TEXT  text from the packed model",
        "  compress ARTIFACT FILE --out F   a text as a small file; decompress brings it back",
        "  prove RUN                        code the scored text and decode it in another process",
        "  audit RUN                        check everything that makes the score true",
        "  report RUN                       the run as one HTML page, report.html",
        "  bundle RUN --out DIR             one folder that repeats the run and scores its model",
        "  seeds RECIPE --seeds N...        the same run for several seeds: mean, deviation, range",
        "  compare A B                      is A better than B by a margin? of runs or seeds",
        "  ablate RECIPE --vary KEY=A,B     a grid of configurations: table and plot",
        "  submission SEEDS... --out DIR    a submission folder of runs that differ in their seed",
        "  export ARTIFACT --out DIR        the weights as safetensors",
        "  data build|fetch|info            any text to token shards, with tokenizer and manifest",
        "",
        "recipes:",
        *(f"  {name:<15}  {purpose}" for name, (purpose, _) in RECIPES.items()),
        "",
        "options: --help of any command, --version, --debug (show tracebacks)",
    ]
    return "\n".join(lines)
