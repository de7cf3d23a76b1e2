"""Where the bytes of the code file go: its program after each step, under bzip2 and our coder.

Costs a minute of one core. Expect about 41 kB under bzip2 for the joined modules, 28 kB under our
coder for the finished program, and 2 s to decode it.

    python scripts/code_table.py
"""

from __future__ import annotations

import ast
import bz2
import copy
import time
from pathlib import Path

import python_minifier

import paramgolf
from paramgolf.code_builder import ENTRY, LEFT_OUT, build, program
from paramgolf.codefile.joining import joined
from paramgolf.codefile.mixing import decode, encode
from paramgolf.codefile.shaking import shaken, untyped
from paramgolf.codefile.shortening import shortened
from paramgolf.recipes import RECIPES


def row(step: str, text: bytes) -> bytes:
    coded = encode(text)
    print(f"| {step} | {len(text):,} | {len(bz2.compress(text)):,} | {len(coded):,} |", flush=True)
    return coded


def source(module: ast.Module) -> bytes:
    text = python_minifier.unparse(ast.fix_missing_locations(copy.deepcopy(module)))
    return text.encode("ascii", "backslashreplace")


def main() -> None:
    """Print the tables."""
    module, names = joined(Path(paramgolf.__file__).parent, ENTRY, LEFT_OUT)
    entry = names[ENTRY]["main"]
    print("| program, minified | characters | bzip2 | mixed contexts |\n|---|---:|---:|---:|")
    row("joined, without annotations", source(untyped(module, names["paramgolf.config"].values())))
    row("shaken", source(shaken(module, entry)))
    row("short names", source(shortened(module, {entry})))
    text = program(RECIPES["tiny"][1])
    coded = row("configuration in, its checks out", text)
    begin = time.process_time()
    decode(coded, len(text))
    print(f"\ndecoded in {time.process_time() - begin:.1f} s\n\n| recipe | bytes |\n|---|---:|")
    for recipe, (_, config) in RECIPES.items():
        print(f"| {recipe} | {len(build(config)):,} |", flush=True)


if __name__ == "__main__":
    main()
