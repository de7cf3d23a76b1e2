"""Write a stand-in for the challenge's shards: the true number and sizes, another text.

    python scripts/stand_in.py --out data/stand-in [--corpus FOLDER]

80 training shards of 100 M tokens and a validation shard of 40,540,160 targets: the sizes that the
recipe `record` works on. The text is that of FOLDER (train.jsonl.xz, val.jsonl.xz, sp8192.model),
or the documentation of Python's library with a tokenizer trained on it. It is repeated: every time,
its documents come in another order, and one ordinary piece in ten is replaced by one drawn from the
same text, so that no sequence repeats. What is trained on it says how long a run takes, never how
well it compresses: its manifest.json calls it a stand-in.

Without enough disk (200 MB a shard), the later training shards are hard links to the first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramgolf.data.corpus import split_by_hash, stdlib_documents
from paramgolf.data.documents import find_jsonl, read_jsonl
from paramgolf.data.shards import HEADER_BYTES, document_starts, write_shard
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer

REPLACED = 0.1
"""Share of the ordinary pieces that a repetition replaces."""
SPARE = 2e9
"""Bytes of disk that stay free."""
VOCAB = 8192


def texts_of(corpus: Path | None) -> dict[str, list[str]]:
    """Return the documents of "train" and "val"."""
    if corpus is None:
        found = split_by_hash(stdlib_documents(), {"val": 0.1}, rest="train")
    else:
        found = {
            split: [document for path in find_jsonl(corpus, split) for document in read_jsonl(path)]
            for split in ("train", "val")
        }
    return {split: [text for _, text in documents] for split, documents in found.items()}


def is_ordinary(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Return which pieces are text by themselves: no control pieces, bytes or operators, (V,)."""
    every = np.arange(tokenizer.vocab_size, dtype=np.uint16)
    texts = [tokenizer.decode([int(token)]) for token in every]
    stated = tokenizer.token_bytes(np.stack([np.full_like(every, every[-1]), every], 1).ravel())
    return np.array(
        [
            text != "" and "\ufffd" not in text and len(text.encode()) == size
            for text, size in zip(texts, stated[::2], strict=True)
        ]
    )


def repetitions(
    stream: NDArray[np.uint16], starts: NDArray[np.int64], ordinary: NDArray[np.bool_], seed: int
) -> Iterator[NDArray[np.uint16]]:
    """Yield the documents of a stream in random order, with replaced pieces, again and again."""
    random = np.random.default_rng(seed)
    documents = np.split(stream, starts[1:])
    pool = stream[ordinary[stream]]
    while True:
        for number in random.permutation(len(documents)):
            document = documents[number].copy()
            places = np.flatnonzero(random.random(len(document), np.float32) < REPLACED)
            places = places[ordinary[document[places]]]
            document[places] = pool[random.integers(len(pool), size=len(places))]
            yield document


def write(
    job: tuple[Path, int, int], stream: NDArray[np.uint16], bos: int, ordinary: NDArray[np.bool_]
) -> str:
    """Write one shard of so many tokens, beginning with a document; return its name."""
    path, size, seed = job
    tokens = np.empty(size, np.uint16)
    done = 0
    for document in repetitions(stream, document_starts(stream, bos), ordinary, seed):
        part = document[: size - done]
        tokens[done : done + len(part)] = part
        done += len(part)
        if done == size:
            break
    # The last document is cut: without the beginning of a character at its end.
    while not ordinary[tokens[done - 1]]:
        tokens[done - 1] = stream[ordinary[stream]][0]
        done -= 1
    write_shard(path, tokens)
    return path.name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, help="train.jsonl.xz, val.jsonl.xz, sp8192.model")
    parser.add_argument("--train-shards", type=int, default=80)
    parser.add_argument("--shard-tokens", type=int, default=100_000_000)
    parser.add_argument("--val-targets", type=int, default=40_540_160)
    parser.add_argument("--distinct", type=int, default=0, help="0: as many as the disk holds")
    chosen = parser.parse_args()
    out, size, began = chosen.out, chosen.shard_tokens, time.perf_counter()
    out.mkdir(parents=True)  # an existing folder may be a real one
    texts = texts_of(chosen.corpus)
    if chosen.corpus is None:
        (out / "tokenizer.model").write_bytes(train_tokenizer(texts["train"], VOCAB))
    else:
        shutil.copy(chosen.corpus / "sp8192.model", out / "tokenizer.model")
    tokenizer = Tokenizer.load(out / "tokenizer.model")
    streams = {split: np.concatenate(tokenizer.encode(of)) for split, of in texts.items()}
    val_tokens = chosen.val_targets + 1
    free = shutil.disk_usage(out).free - SPARE - 2 * val_tokens
    fitting = int(free // (2 * size + HEADER_BYTES))
    distinct = max(1, min(chosen.distinct or chosen.train_shards, chosen.train_shards, fitting))
    jobs: dict[str, list[tuple[Path, int, int]]] = {
        "train": [(out / f"standin_train_{n:06d}.bin", size, n) for n in range(distinct)],
        "val": [(out / "standin_val_000000.bin", val_tokens, 1 << 20)],
    }
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for split, of in jobs.items():
            how = partial(
                write, bos=tokenizer.bos, ordinary=is_ordinary(tokenizer), stream=streams[split]
            )
            for name in pool.map(how, of):
                print(f"{time.perf_counter() - began:7.1f} s  {name}", flush=True)
    for number in range(distinct, chosen.train_shards):
        os.link(jobs["train"][number % distinct][0], out / f"standin_train_{number:06d}.bin")
    links = f", {distinct} of them distinct, the others hard links" * (
        distinct < chosen.train_shards
    )
    text = "Python's documentation" if chosen.corpus is None else str(chosen.corpus)
    stand_in = (
        f"A stand-in for FineWeb: {chosen.train_shards} training shards of {size:,} tokens{links}; "
        f"{chosen.val_targets:,} validation targets; the text of {text}, repeated with variations. "
        "No score on it is one on FineWeb."
    )
    (out / "manifest.json").write_text(json.dumps({"stand_in": stand_in}, indent=2) + "\n")
    print(stand_in)


if __name__ == "__main__":
    main()
