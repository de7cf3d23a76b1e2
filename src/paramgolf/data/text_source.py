"""What `data.source` and `data.tokenizer` name, checked in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from paramgolf.config import DataConfig
from paramgolf.data.documents import JSONL_NAMES, find_jsonl
from paramgolf.data.shards import find_shards
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import ConfigError, UserError


def kind_of_text(source: str) -> Literal["stdlib", "jsonl", "shards"]:
    """Return what a source contains.

    Raises:
        UserError: if it is no directory, or one without text.
    """
    folder = Path(source)
    if source == "stdlib":
        return "stdlib"
    if not folder.is_dir():
        raise UserError(f"data.source = {source!r} is not a directory")
    if find_jsonl(folder, "train"):
        return "jsonl"
    if find_shards(folder, "train"):
        return "shards"
    raise UserError(
        f"{folder} contains neither train*.{JSONL_NAMES} nor *_train_*.bin: make shards with "
        f"`paramgolf data build {folder} --out {folder}-shards`"
    )


def tokenizer_of_shards(data: DataConfig) -> Path:
    """Return the tokenizer that goes with a folder of shards.

    Raises:
        UserError: if none is named and none is in the folder.
    """
    file = Path(data.tokenizer or Path(data.source) / "tokenizer.model")
    if not file.is_file():
        raise UserError(
            f"shards need their tokenizer, but {file} does not exist: name it with --data.tokenizer"
        )
    return file


def load_tokenizer(file: Path, vocab_size: int) -> Tokenizer:
    """Load a tokenizer for a model of this vocabulary.

    Raises:
        ConfigError: if it has another number of pieces.
        UserError: see `Tokenizer.load`.
    """
    tokenizer = Tokenizer.load(file)
    if tokenizer.vocab_size != vocab_size:
        raise ConfigError(
            f"invalid model.vocab_size = {vocab_size}: {file} has {tokenizer.vocab_size} pieces; "
            f"set --model.vocab-size {tokenizer.vocab_size}"
        )
    return tokenizer
