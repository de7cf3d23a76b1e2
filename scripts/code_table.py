"""Which packages take how many bytes of the code file, and its size for every recipe.

Cost: seconds. Expected: the tables of docs/experiments/code-file.md; less than 50,000 bytes for
every recipe.

    python scripts/code_table.py
"""

from __future__ import annotations

import bz2
from collections import Counter

from paramgolf.codefile.build import build, stripped_sources
from paramgolf.recipes import RECIPES


def package(module: str) -> str:
    """Return the package that a module is in; "(root)" for those in none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "(root)"


def main() -> None:
    """Print the tables."""
    modules = stripped_sources()
    everything = len(bz2.compress("".join(modules.values()).encode()))
    sizes = Counter[str]()
    for name, text in modules.items():
        sizes[package(name)] += len(text)
    print("| package | characters, stripped | bytes saved by leaving it out |\n|---|---:|---:|")
    for room, size in sizes.most_common():
        others = "".join(text for name, text in modules.items() if package(name) != room)
        print(f"| {room} | {size:,} | {everything - len(bz2.compress(others.encode())):,} |")
    print("\n| recipe | bytes |\n|---|---:|")
    for recipe, (_, config) in RECIPES.items():
        print(f"| {recipe} | {len(build(config)):,} |")


if __name__ == "__main__":
    main()
