"""CaseOps on one GPU: the recipe h200 with two tokenizers that differ in CaseOps alone.

Both tokenizers have 8,192 pieces from the same 40 MB of training text. Both models train for 180 s
and are scored on the same documents, in bits per byte of the original text: the whole documents
that contain the first 2,883,585 tokens of the plain tokenizer. (`--data.val-targets` counts tokens,
so it would end the two at different places.)

Cost: about 6 minutes per run on one NVIDIA H100 or H200 with 16 CPU cores. Needs the folder
`corpus/` (train.jsonl.xz and val.jsonl.xz of the benchmark). Prints for each run, and as a
difference: bytes per token, tokens scored, steps and text seen in training, BPB after EMA,
quantized, and quantized with sliding windows (not adapted), and the counted bytes. Expected: the
table of docs/experiments/caseops-h100.md.

    python scripts/caseops_bench.py --out runs/caseops --only plain
    python scripts/caseops_bench.py --out runs/caseops --only caseops
    python scripts/caseops_bench.py --out runs/caseops --table
    python scripts/caseops_bench.py --out runs/caseops --speed   # of encoding 16 MB, on a CPU
    python scripts/caseops_bench.py --out runs/smoke --smoke     # a test of the script, on a CPU

If interrupted, the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runs import run_or_resume

from paramgolf.data.caseops import from_caseops, to_caseops
from paramgolf.data.documents import Document, find_jsonl, read_jsonl
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.runtime.files import write_bytes


class Size(NamedTuple):
    """The sizes of an experiment."""

    recipe: str
    vocab_size: int
    sample_bytes: int
    train_bytes: float
    val_tokens: int
    options: tuple[str, ...]


FULL = Size("h200", 8192, 40_000_000, float("inf"), 2_883_585, ())
SMOKE = Size(
    "tiny", 1024, 1_000_000, 1_000_000, 20_000, ("--train.max-steps=10", "--adapt.text=none")
)
NAMES = ("plain", "caseops")


def documents(corpus: Path, split: str, max_bytes: float) -> Iterator[Document]:
    """Yield the first documents of a split, up to `max_bytes`."""
    size = 0
    for path in find_jsonl(corpus, split):
        for document in read_jsonl(path):
            yield document
            size += len(document.text.encode())
            if size >= max_bytes:
                return


def write_jsonl(path: Path, texts: list[str]) -> None:
    write_bytes(path, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())


def prepare(out: Path, corpus: Path, size: Size) -> None:
    """Train the tokenizers; write a folder of the training text and of the documents to score."""
    folder = out / "text"
    if (folder / "val.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sample = [text for _, text in documents(corpus, "train", size.sample_bytes)]
    for name in NAMES:
        if not (out / f"{name}.model").exists():  # they may have been trained before, without a GPU
            model = train_tokenizer(sample, size.vocab_size, case_ops=name == "caseops")
            write_bytes(out / f"{name}.model", model)
    if size.train_bytes < float("inf"):
        write_jsonl(folder / "train.jsonl", sample)
    else:
        for path in find_jsonl(corpus, "train"):
            link = folder / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
    plain = Tokenizer.load(out / "plain.model")
    scored: list[str] = []
    tokens = 0
    for _, text in documents(corpus, "val", float("inf")):
        scored.append(text)
        tokens += len(plain.encode([text])[0])
        if tokens >= size.val_tokens:
            break
    write_jsonl(folder / "val.jsonl", scored)


def run(name: str, out: Path, size: Size) -> None:
    options = [*size.options, "--data.source", str(out / "text"), "--data.val-targets", "0"]
    options += ["--data.tokenizer", str(out / f"{name}.model")]
    options += ["--model.vocab-size", str(size.vocab_size)]
    run_or_resume(size.recipe, out / name, options)


def figures(run: Path) -> dict[str, float]:
    results = json.loads((run / "results.json").read_text())
    batch = json.loads((run / "config.json").read_text())["train"]["batch_tokens"]
    stages = results["stages"]
    score = stages["sliding"]
    per_token = score["bytes"] / score["tokens"]
    return {
        "bytes scored": score["bytes"],
        "tokens scored": score["tokens"],
        "bytes per token": per_token,
        "steps": results["steps"],
        "MB of text seen (by that ratio)": results["steps"] * batch * per_token / 1e6,
        "BPB after EMA": stages["ema"]["bpb"],
        "BPB quantized, plain": stages["quantized"]["bpb"],
        "BPB quantized, sliding": score["bpb"],
        "counted bytes": results["bytes"]["total"],
    }


def print_table(out: Path) -> None:
    finished = [name for name in NAMES if (out / name / "results.json").exists()]
    columns = {name: figures(out / name) for name in finished}
    if len({column["bytes scored"] for column in columns.values()}) > 1:
        raise SystemExit("the runs scored different texts and cannot be compared")
    print(f"\n| what | {' | '.join(finished)} | difference |\n|---|{'---:|' * (len(finished) + 1)}")
    for what in columns[finished[0]] if finished else ():
        values = [column[what] for column in columns.values()]
        difference = values[1] - values[0] if len(values) == 2 else None
        shown = [
            "-" if v is None else f"{v:,.4f}" if isinstance(v, float) else f"{v:,}"
            for v in (*values, difference)
        ]
        print(f"| {what} | {' | '.join(shown)} |")


def print_speed(out: Path, corpus: Path) -> None:
    """Print the speed of the transform and of both tokenizers (on all threads)."""
    texts = [text for _, text in documents(corpus, "train", 16e6)]
    size = sum(len(text.encode()) for text in texts)
    start = time.process_time()
    written = [to_caseops(text) for text in texts]
    print(f"\nto_caseops    {size / 1e6 / (time.process_time() - start):6.1f} MB per CPU second")
    start = time.process_time()
    back = [from_caseops(text) for text in written]
    print(f"from_caseops  {size / 1e6 / (time.process_time() - start):6.1f} MB per CPU second")
    assert back == texts
    for name in NAMES:
        tokenizer = Tokenizer.load(out / f"{name}.model")
        start = time.process_time()
        tokens = sum(map(len, tokenizer.encode(texts)))
        speed = size / 1e6 / (time.process_time() - start)
        print(f"{name:<13} {speed:6.1f} MB per CPU second; {size / tokens:.4f} bytes per token")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, default=Path("corpus"))
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    size = SMOKE if arguments.smoke else FULL
    if arguments.speed:
        prepare(arguments.out, arguments.corpus, size)
        print_speed(arguments.out, arguments.corpus)
        return
    if not arguments.table:
        prepare(arguments.out, arguments.corpus, size)
        for name in [arguments.only] if arguments.only else NAMES:
            run(name, arguments.out, size)
    print_table(arguments.out)


if __name__ == "__main__":
    main()
