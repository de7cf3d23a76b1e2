"""Where the bytes of the code file go, by room, and its size for every recipe.

Takes a second. Expect about 49 kB for every recipe.

    python scripts/code_table.py
"""

from __future__ import annotations

import bz2
from collections import Counter

from paramgolf.codefile.build import build, stripped_sources
from paramgolf.recipes import RECIPES


def main() -> None:
    """Print the tables."""
    modules = stripped_sources()
    everything = len(bz2.compress("".join(modules.values()).encode()))
    sizes, saved = Counter[str](), Counter[str]()
    for name in modules:
        room = name.split(".")[1] if "." in name else "(root)"
        sizes[room] += len(modules[name])
    for room in sizes:
        others = [text for name, text in modules.items() if f"{name}.".split(".")[1] != room]
        saved[room] = everything - len(bz2.compress("".join(others).encode()))
    print("| room | characters, stripped | bytes that leaving it out would save |\n|---|---:|---:|")
    for room, size in sizes.most_common():
        print(f"| {room} | {size:,} | {saved[room]:,} |")
    print("\n| recipe | bytes |\n|---|---:|")
    for recipe, (_, config) in RECIPES.items():
        print(f"| {recipe} | {len(build(config)):,} |")


if __name__ == "__main__":
    main()
