"""Speed of encoding text, beside SentencePiece's own batch encoding on the same cores.

Cost: about two minutes on two cores. Needs a folder with train.jsonl.xz and a SentencePiece model,
by default those of the benchmark in `corpus/`. Expected: at least 0.9 times SentencePiece's speed
(docs/experiments/encoding-speed.md).

    python scripts/encoding_speed.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from paramgolf.data.documents import Document, find_jsonl, read_jsonl
from paramgolf.data.encoding import encode_documents
from paramgolf.data.tokenizer import Tokenizer

REPEATS = 5


def first_documents(corpus: Path, max_bytes: int) -> tuple[list[Document], int]:
    """Return the first documents of the training text, and their UTF-8 bytes."""
    documents: list[Document] = []
    size = 0
    for path in find_jsonl(corpus, "train"):
        for document in read_jsonl(path):
            documents.append(document)
            size += len(document.text.encode())
            if size >= max_bytes:
                return documents, size
    return documents, size


def seconds(functions: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median wall time of each; they take turns, so that all meet the same noise."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, times in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=Path("corpus"))
    parser.add_argument("--tokenizer", type=Path, default=Path("corpus/sp8192.model"))
    parser.add_argument("--bytes", type=int, default=16_000_000)
    arguments = parser.parse_args()
    documents, size = first_documents(arguments.corpus, arguments.bytes)
    texts = [text for _, text in documents]
    threads = os.cpu_count() or 1
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(arguments.tokenizer))
    ours = Tokenizer.load(arguments.tokenizer)
    for text, tokens, ids in zip(texts, ours.encode(texts), theirs.encode(texts), strict=True):
        assert "\u2581" in text or np.array_equal(tokens[1:], ids)  # a space to SentencePiece
    functions = {
        "SentencePiece's encode(list, num_threads)": lambda: theirs.encode(
            texts, num_threads=threads
        ),
        "Tokenizer.encode": lambda: ours.encode(texts),
        "encode_documents (also hashes every run of letters)": lambda: encode_documents(
            documents, ours
        ),
    }
    medians = seconds(list(functions.values()))
    print(f"{len(documents):,} documents, {size:,} bytes, {threads} threads, median of {REPEATS}")
    print("\n| what | s | MB/s | of SentencePiece's |\n|---|---:|---:|---:|")
    for name, median in zip(functions, medians, strict=True):
        print(f"| {name} | {median:.2f} | {size / median / 1e6:.2f} | {medians[0] / median:.3f} |")


if __name__ == "__main__":
    main()
