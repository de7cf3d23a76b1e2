"""How often runs of letters of several lengths are seen by chance, and how many survive edits.

    python scripts/overlap_table.py CORPUS [--bytes N]

CORPUS contains train*.jsonl[.gz|.xz] and val*.jsonl[.gz|.xz]; --bytes takes the first documents of
the validation text with so many bytes. By chance: the validation text against all training text.
After edits: the validation text against itself with one edit in every twelfth word.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from paramgolf.data import fingerprints
from paramgolf.data.describe import compare
from paramgolf.data.documents import Document, batches, find_jsonl, read_jsonl
from paramgolf.data.overlap import Overlap, RunIndex

LENGTHS = (20, 24, 28, 32)
EVERY = 12

EDITS: dict[str, Callable[[str], str]] = {
    "inserted space": lambda word: word[:1] + " " + word[1:],
    "doubled letter": lambda word: word[:1] + word,
    "dropped word": lambda word: "",
}


def windows(letters: fingerprints.Hashes) -> fingerprints.Hashes:
    """Return the hash of each window of as many letters as a run now has; slower than the usual."""
    count = max(0, len(letters) - fingerprints.RUN_LETTERS + 1)
    hashes = np.zeros(count, np.uint64)
    for offset in range(fingerprints.RUN_LETTERS if count else 0):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += letters[offset : offset + count]
    return hashes * np.uint64(0xD6E8FEB86659FD93) ^ hashes >> np.uint64(32)


def read(folder: Path, split: str) -> Iterator[Document]:
    """Yield all documents of a split."""
    return chain.from_iterable(map(read_jsonl, find_jsonl(folder, split)))


def edited(text: str, edit: Callable[[str], str], offset: int) -> str:
    """Return a text with one edit in every twelfth word."""
    words = text.split(" ")
    return " ".join(edit(w) if i % EVERY == offset else w for i, w in enumerate(words))


def shown(name: str, found: Overlap, seconds: float) -> None:
    """Print one row."""
    print(
        f"| {fingerprints.RUN_LETTERS} | {name} | {found.share or 0.0:.2%} "
        f"| {found.seen_documents / found.documents:.2%} | {found.seen_bytes / found.bytes:.2%} "
        f"| {seconds:.1f} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--bytes", type=int, default=1 << 62)
    chosen = parser.parse_args()
    scored: list[str] = []
    size = 0
    for _, text in read(chosen.corpus, "val"):
        size += len(text.encode())
        if size > chosen.bytes:
            break
        scored.append(text)
    train = [[t for _, t in batch] for batch in batches(read(chosen.corpus, "train"), 1 << 22)]
    total = sum(len(text.encode()) for texts in train for text in texts)
    print(f"{len(scored):,} documents scored, {sum(len(t.encode()) for t in scored):,} bytes;")
    print(f"{total:,} bytes of training text\n")
    print("| letters | training text | runs seen | documents seen | bytes seen | seconds |")
    print("|---|---|---|---|---|---|")
    offsets, usual = random.Random(0), fingerprints._windows  # pyright: ignore
    for length in LENGTHS:
        fingerprints.RUN_LETTERS = length
        fingerprints._windows = windows if length != 24 else usual  # pyright: ignore
        started = time.monotonic()
        index = RunIndex(scored)
        for texts in train:
            compare(index, texts)
        shown("the real one", index.result(), time.monotonic() - started)
        for name, edit in EDITS.items():
            started = time.monotonic()
            index = RunIndex(scored)
            compare(index, (edited(text, edit, offsets.randrange(EVERY)) for text in scored))
            shown(name, index.result(), time.monotonic() - started)


if __name__ == "__main__":
    main()
