"""Texts to score: their documents, and the tokens that stand for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.data import shards
from paramgolf.data.documents import is_jsonl, read_jsonl, read_text, text_digest
from paramgolf.data.manifest import built_split
from paramgolf.data.sidecars import check_sidecars, is_sidecar
from paramgolf.data.tokenizer import RULES, Tokenizer
from paramgolf.errors import UserError

ORIGINALS = "originals_val.jsonl"
"""Beside validation shards: their original documents, if the tokenizer normalises these."""


class Stream(NamedTuple):
    """Documents that are scored together."""

    name: str
    tokens: NDArray[np.uint16]
    """(N + 1,); each document begins with BOS."""
    texts: list[str]
    """The original documents; the decoded ones where the originals are not known."""
    bytes_are: str = "original"
    """What `texts` are: "original" or "as decoded"."""

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the documents."""
        return sum(len(text.encode()) for text in self.texts)

    @property
    def sha256(self) -> str:
        """The hash that names the text."""
        return text_digest(self.texts).hex()

    def restored(self, tokenizer: Tokenizer) -> str:
        """Return in which form the tokens restore `texts`: "original", or `Tokenizer.form`."""
        same = tokenizer.decode_documents(self.tokens) == self.texts
        return "original" if same else tokenizer.form


def read_streams(files: Sequence[Path], tokenizer: Tokenizer) -> Iterator[Stream]:
    """Yield one stream of all shards (.bin) together, and one per text or JSON Lines file.

    Sidecars, which a glob may match together with their shards, are not read as text.

    Raises:
        UserError: if a file is missing, damaged or without text, a sidecar is wrong, or the
            tokenizer does not preserve the text (see `require_restored`).
    """
    bins = [path for path in files if path.suffix == ".bin"]
    if bins:
        texts = [path for path in bins if not is_sidecar(path)]
        if not texts:
            raise UserError(f"{bins[0]} contains byte counts, not tokens: name its shard")
        for path in texts:
            shards.check_vocabulary(path, shards.open_shard(path), tokenizer.vocab_size)
        check_sidecars(texts, tokenizer)
        stream = of_shards(texts, tokenizer)
        require_counted(stream, tokenizer)
        yield _with_text(stream, tokenizer)
    for path in files:
        if path in bins:
            continue
        documents = read_jsonl(path) if is_jsonl(path) else None
        if documents is None:
            texts = [read_text(path).removeprefix("\ufeff")]
        else:
            texts = [text for _, text in documents]
        yield encoded(str(path), texts, tokenizer)


def encoded(name: str, texts: list[str], tokenizer: Tokenizer) -> Stream:
    """Return documents as a stream.

    Raises:
        UserError: if they are empty, or the tokenizer does not preserve them.
    """
    if not any(texts):
        raise UserError(f"{name} is empty")
    stream = Stream(name, np.concatenate(tokenizer.encode(texts)), texts)
    require_restored(_with_text(stream, tokenizer), tokenizer)
    return stream


def of_shards(paths: Sequence[Path], tokenizer: Tokenizer) -> Stream:
    """Return the text of consecutive shards, whose tokens must be pieces of the tokenizer.

    Its documents are the original ones if `data build` wrote exactly these shards, and so says its
    manifest.

    Raises:
        UserError: if the tokenizer normalises by another rule than SentencePiece's own.
    """
    tokens = shards.read_stream(paths)
    texts = tokenizer.decode_documents(tokens)
    stream = Stream(", ".join(map(str, paths)), tokens, texts, "as decoded")
    if (built := built_split(paths, tokenizer.sha256)) is not None:
        originals = paths[0].with_name(ORIGINALS)
        if originals.exists():
            texts = [text for _, text in read_jsonl(originals)]
        if text_digest(texts).hex() == built["text_sha256"]:
            stream = stream._replace(texts=texts, bytes_are="original")
            require_restored(stream, tokenizer)
            return stream
    _require_rule(stream, tokenizer)
    return stream


def cut(stream: Stream, targets: int, tokenizer: Tokenizer) -> tuple[Stream, Stream | None]:
    """Return the beginning of a text and the whole documents after it, None if there are none.

    The beginning has at most so many targets and ends with a whole character; with a whole document
    if the tokenizer normalises, since a part of the tokens is then no part of the original.

    Raises:
        UserError: if the tokenizer normalises, and the first document is longer than that.
    """
    tokens = stream.tokens
    starts = shards.document_starts(tokens, tokenizer.bos)
    begun = int(np.searchsorted(starts, targets + 1))
    last = int(starts[begun - 1])
    end = last + len(_whole_characters(tokens[last : targets + 1], tokenizer))
    texts = tokenizer.decode_documents(tokens[:end])
    *whole, beginning = texts
    if stream.texts[: begun - 1] != whole or not stream.texts[begun - 1].startswith(beginning):
        ends = np.append(starts[1:], len(tokens))
        count = int(np.searchsorted(ends, targets + 1, side="right"))
        if not count:
            raise UserError(
                f"data.val_targets = {targets:,} ends within the first document, but the tokenizer "
                f"normalises text and needs whole documents: set --data.val-targets {ends[0] - 1}"
            )
        end, texts = int(ends[count - 1]), stream.texts[:count]
    scored = stream._replace(tokens=tokens[:end], texts=texts)
    if begun == len(starts):
        return scored, None
    rest = tokens[int(starts[begun]) :]
    if len(rest) == len(starts) - begun:  # nothing but the BOS of empty documents
        return scored, None
    return scored, stream._replace(tokens=rest, texts=stream.texts[begun:])


def require_restored(stream: Stream, tokenizer: Tokenizer) -> None:
    """Check that a text comes back from its tokens, so that its bytes are what is predicted.

    Raises:
        UserError: if a token is an unknown piece, the tokenizer normalises by another rule than
            SentencePiece's own, or a document comes back neither as it was nor in its normal form.
    """
    _require_rule(stream, tokenizer)
    if unknown := tokenizer.unknown(stream.tokens):
        raise UserError(
            f"{stream.name}: {unknown:,} of {len(stream.tokens):,} tokens are unknown pieces: use "
            "a tokenizer with byte fallback"
        )
    decoded = tokenizer.decode_documents(stream.tokens)
    for number, (text, back) in enumerate(zip(stream.texts, decoded, strict=True), start=1):
        if back not in (text, tokenizer.normal_form(text)):
            raise UserError(
                f"{stream.name}: document {number:,} does not come back from its tokens: use "
                "another tokenizer"
            )


def require_counted(stream: Stream, tokenizer: Tokenizer) -> None:
    """Check that tokens are whole documents of the tokenizer, each worth the bytes of its text.

    Raises:
        UserError: if they do not begin with BOS, are control or unused pieces, or if a document
            counts other bytes than its decoded text has.
    """
    if stream.tokens[:1] != tokenizer.bos:
        raise UserError(
            f"{stream.name} does not begin with BOS ({tokenizer.bos}), as every document must: its "
            "first token would not be predicted"
        )
    if silent := tokenizer.silent(stream.tokens):
        raise UserError(
            f"{stream.name}: {silent:,} of {len(stream.tokens):,} tokens are control or unused "
            "pieces, which no text is made of: build the shards again"
        )
    starts = shards.document_starts(stream.tokens, tokenizer.bos)
    of_tokens = np.append(0, tokenizer.token_bytes(stream.tokens))
    counted = np.add.reduceat(of_tokens, starts)
    decoded = tokenizer.decode_documents(stream.tokens)
    sizes = np.array([len(text.encode()) for text in decoded])
    wrong = np.flatnonzero(counted != sizes)
    if len(wrong) and not tokenizer.unknown(stream.tokens):
        first = int(wrong[0])
        raise UserError(
            f"{stream.name}: the tokens of document {first + 1:,} count {counted[first]:,} bytes, "
            f"but decode to {sizes[first]:,}: every document must begin with BOS "
            f"({tokenizer.bos}) and be valid UTF-8"
        )


def _require_rule(stream: Stream, tokenizer: Tokenizer) -> None:
    if not tokenizer.rule:
        raise UserError(
            f"{stream.name}: the tokenizer normalises by a rule of its own: use one with a rule of "
            f"SentencePiece ({', '.join(RULES)})"
        )


def _whole_characters(document: NDArray[np.uint16], tokenizer: Tokenizer) -> NDArray[np.uint16]:
    """Return the tokens of a document without those of an incomplete character at their end."""
    for dropped in range(min(4, len(document))):
        kept = document[: len(document) - dropped]
        counted = int(tokenizer.token_bytes(np.append(np.uint16(tokenizer.bos), kept)).sum())
        if counted == len(tokenizer.decode(kept.tolist()).encode()):
            return kept
    return document


def _with_text(stream: Stream, tokenizer: Tokenizer) -> Stream:
    """Return a stream that has a text to score; a score per byte of none is not a number."""
    if not tokenizer.token_bytes(stream.tokens).any():
        raise UserError(f"{stream.name} contains no text that the tokenizer keeps")
    return stream
