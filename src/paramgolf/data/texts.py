"""The texts that `score` is given: files, folders, pipes and shards, as streams to score."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from paramgolf.data.sources import find_sources, is_stream, read_documents
from paramgolf.data.streams import Stream, encoded, read_streams
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError


def read_texts(
    names: Sequence[str], text_key: str, tokenizer: Tokenizer
) -> tuple[list[Stream], list[str]]:
    """Return the texts of sources and shards, and lines on what was left out.

    All shards are one text, every other file is one. Files come before folders, and none is read
    twice. The files of a single folder are named without it.

    Args:
        names: sources as of `find_sources`, and shards (.bin).
        text_key: see `read_documents`.
        tokenizer: encodes the texts.

    Raises:
        UserError: if a source cannot be read, or no file of the folders can be scored.
    """
    shards = [Path(name) for name in names if name.endswith(".bin")]
    sources = [name for name in names if not name.endswith(".bin")]
    streams = list(read_streams(shards, tokenizer))
    left_out: list[str] = []
    read: set[Path] = set()
    with tempfile.TemporaryDirectory() as stored:
        sources.sort(key=lambda name: Path(name).is_dir())
        for number, name in enumerate(sources):
            folder = Path(name) if Path(name).is_dir() else None
            if folder is not None:
                _require_no_shards(folder)
            stream_file = Path(stored) / f"source-{number}"
            for file in find_sources([name], stream_file, left_out.append):
                if file in read:
                    continue
                read.add(file)
                shown = name if is_stream(name) else str(file)
                try:
                    texts = list(_texts(file, text_key, left_out))
                    stream = encoded(shown, texts, tokenizer)
                except UserError as error:
                    if folder is None:
                        raise
                    left_out.append(str(error))
                    continue
                if folder is not None and len(names) == 1:
                    stream = stream._replace(name=str(file.relative_to(folder)))
                streams.append(stream)
    if not streams:
        raise UserError(f"no text to score: {left_out[-1]}")
    return streams, left_out


def _require_no_shards(folder: Path) -> None:
    if any(folder.glob("*_val_*.bin")):
        raise UserError(
            f"{folder} contains token shards; name those to score, such as {folder}/*_val_*.bin"
        )


def _texts(file: Path, text_key: str, left_out: list[str]) -> Iterator[str]:
    blank: list[None] = []
    for _, text in read_documents(file, text_key, lambda _: None, lambda: blank.append(None)):
        yield text
    if blank:
        left_out.append(f"{len(blank):,} blank lines or nulls of {file}")
