"""A recipe that takes seconds: a smaller `tiny` on a small folder of English text."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from paramgolf.config import RunConfig
from paramgolf.recipes import RECIPES

MINI: dict[str, dict[str, Any]] = {
    # One target more than whole windows of 64 cover, consecutive or with stride 16.
    # A second implementation of decoding needs no more than SentencePiece without CaseOps.
    "data": {"val_targets": 3009, "case_ops": False},
    "model": {
        "vocab_size": 512,
        "num_layers": 4,
        "width": 32,
        "num_heads": 2,
        "num_kv_heads": 1,
        "mlp_ratio": 2,
        "seq_len": 64,
        "rotary_dims": 8,
        "loop_first": 1,
        "loop_last": 2,
        "loop_visits": 2,
        "parallel_from": 3,
    },
    "train": {
        "max_steps": 6,
        "batch_tokens": 512,
        "micro_batch_tokens": 256,
        "matrix_lr": 0.022,
        "momentum": 0.95,
        "momentum_start": 0.85,
        "momentum_warmup_share": 0.3,
        "ema_share": 0.15,
    },
    "adapt": {
        "text": "adapt",
        "epochs": 2,
        "lr": 5e-4,
        "final_lr": 5e-5,
        "chunk_tokens": 1024,
        "frozen_blocks": 1,
        "score_every_epoch": True,
    },
    "pack": {
        "calibration_batches": 2,
        "calibration_batch_tokens": 512,
        "budget_bytes": 88_000,
    },
    "score": {"stride": 16, "batch_tokens": 4096},
}

LEARNING = [
    *("--score-first.optimizer", "adamw", "--score-first.lr", "3e-4"),
    *("--score-first.chunk-tokens", "512", "--score-first.adapter-tokens", "32"),
]
"""Options with which a recipe that learns while it scores becomes one that takes seconds."""

SHAPED_FILES = ("model.bin", "provenance.safetensors", "tokenizer.model", "quantization.json")
"""Files of a run that are equal for equal configurations."""

_MAX_CHARS = 2400
_NUM_VAL = 14


def mini_config(source: Path) -> RunConfig:
    """Return the configuration of a mini run on the text in `source`."""
    config = dataclasses.replace(RECIPES["tiny"][1], device="cpu")
    for section, values in MINI.items():
        changed = dataclasses.replace(getattr(config, section), **values)
        config = dataclasses.replace(config, **{section: changed})
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(source)))


def mini_options(source: Path) -> list[str]:
    """Return the options that turn the recipe `tiny` into `mini_config`."""
    options = ["--device", "cpu", "--data.source", str(source)]
    for section, values in MINI.items():
        for key, value in values.items():
            options += [f"--{section}.{key.replace('_', '-')}", str(value)]
    return options


def shrinking_options() -> list[str]:
    """Return the options that make a mini run of a printed command, which names its text."""
    pairs = iter(mini_options(Path()))
    named = ("--data.source", "--model.vocab-size", "--data.val-targets", "--adapt.text")
    kept = [pair for pair in zip(pairs, pairs, strict=True) if pair[0] not in named]
    return [word for pair in kept for word in pair]


def write_source(folder: Path) -> None:
    """Write train.jsonl and val.jsonl: help topics of Python, the long ones cut.

    Paragraphs of earlier topics are left out, so that the splits are disjoint.
    """
    texts: dict[str, str] = {}
    seen: set[str] = set()
    for name, text in sorted(topics.items()):
        paragraphs = [part for part in text.strip().split("\n\n") if part not in seen]
        seen.update(paragraphs)
        if paragraphs:
            texts[name] = _beginning("\n\n".join(paragraphs) + "\n")
    val = sorted(texts)[::3][:_NUM_VAL]
    train = sorted(set(texts) - set(val))
    for split, names in (("train", train), ("val", val)):
        lines = [json.dumps({"id": name, "text": texts[name]}) for name in names]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def _beginning(text: str) -> str:
    """Return whole paragraphs from the beginning of a text."""
    if len(text) <= _MAX_CHARS:
        return text
    return text[: text.rfind("\n\n", 0, _MAX_CHARS)] + "\n"


def texts_of(source: Path, split: str) -> list[str]:
    """Return the documents of a split of `write_source`."""
    lines = (source / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def read_results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def require_same_artifact(ours: Path, theirs: Path) -> None:
    """Check that two runs have written the same artifact, byte for byte."""
    for name in SHAPED_FILES:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    """Return what equal runs have in common: no times, and no code, which names every key."""
    sizes = {k: v for k, v in results["bytes"].items() if k not in ("code", "total")}
    rest = {
        k: v for k, v in results.items() if k not in ("seconds", "budgets", "tokens_per_second")
    }
    return {**rest, "bytes": sizes}


def events(run: Path) -> list[dict[str, Any]]:
    """Return the complete lines of events.jsonl so far; none if the file does not exist yet."""
    path = run / "events.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def stages_started(run: Path) -> list[str]:
    """Return the stages that were started so far, in order."""
    return [event["stage"] for event in events(run) if event["event"] == "stage_started"]


def table_rows(printed: str) -> list[list[str]]:
    """Return the cells of every body row of all printed tables."""
    rows = [
        line[1:-1].split("\u2502") for line in printed.splitlines() if line.startswith("\u2502")
    ]
    return [[cell.strip() for cell in row] for row in rows]


def unboxed(message: str) -> str:
    """Return a message without its frame and line breaks."""
    return " ".join(re.sub(r"[\u2500-\u257f]", " ", message).split())
