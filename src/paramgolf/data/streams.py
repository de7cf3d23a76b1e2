"""Texts to score: their documents, and the tokens that stand for them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.config import DataConfig
from paramgolf.data import shards
from paramgolf.data.documents import is_jsonl, read_jsonl, text_blocks, text_digest
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
    """Yield one stream of all shards (.bin) together, and one per JSON Lines file or UTF-8 text.

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
        yield require_scorable(stream, tokenizer)
    for path in files:
        if path in bins:
            continue
        yield encoded(str(path), _texts(path), tokenizer)


def _texts(path: Path) -> list[str]:
    """Return the documents of a file: those of JSON Lines, or one of plain text."""
    try:
        if is_jsonl(path):
            return [text for _, text in read_jsonl(path)]
        return [b"".join(text_blocks(path)).decode()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from error


def encoded(name: str, texts: list[str], tokenizer: Tokenizer) -> Stream:
    """Return documents as a stream.

    Raises:
        UserError: if they are empty, or the tokenizer does not preserve them.
    """
    if not any(texts):
        raise UserError(f"{name} is empty")
    stream = Stream(name, np.concatenate(tokenizer.encode(texts)), texts)
    require_restored(require_scorable(stream, tokenizer), tokenizer)
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


def cut(whole: Stream, data: DataConfig, tokenizer: Tokenizer) -> tuple[Stream, Stream | None]:
    """Return the part of a validation text that is scored, and the documents behind it.

    Args:
        whole: the text.
        data: says where to cut, and which part to score.
        tokenizer: of the text.

    Returns:
        The scored part; and the whole documents behind it, None if there are none.

    Raises:
        UserError: if the documents behind the cut are to be scored, and there are none; or if the
            tokenizer normalises, and the first document has more than `data.val_targets`.
    """
    starts = shards.document_starts(whole.tokens, tokenizer.bos).tolist()
    ends = [*starts[1:], len(whole.tokens)]
    if 0 < data.val_targets < len(whole.tokens) - 1:
        first, begun = _first_targets(whole, starts, ends, data.val_targets, tokenizer)
    elif 0 < data.val_bytes < whole.bytes:
        first, begun = _first_bytes(whole, starts, ends, data.val_bytes, tokenizer)
    else:
        first, begun = whole, len(starts)
    behind = whole._replace(tokens=whole.tokens[ends[begun - 1] :], texts=whole.texts[begun:])
    rest = behind if len(behind.tokens) > len(behind.texts) else None  # more than empty documents
    if data.val_part == "first":
        return first, rest
    if rest is None:
        raise UserError(
            "data.val_part = 'rest', but no document is behind the cut: lower --data.val-bytes"
        )
    return rest, None


def _first_targets(
    whole: Stream, starts: list[int], ends: list[int], targets: int, tokenizer: Tokenizer
) -> tuple[Stream, int]:
    """Return the beginning of a text, and how many of its documents have begun there.

    It has at most so many targets and ends with a whole character; with a whole document if the
    tokenizer normalises, since a part of the tokens is then no part of the original.
    """
    tokens = whole.tokens
    begun = bisect_left(starts, targets + 1)
    last = starts[begun - 1]
    end = last + len(_whole_characters(tokens[last : targets + 1], tokenizer))
    texts = tokenizer.decode_documents(tokens[:end])
    *before, beginning = texts
    if whole.texts[: begun - 1] != before or not whole.texts[begun - 1].startswith(beginning):
        count = bisect_right(ends, targets + 1)
        if not count:
            raise UserError(
                f"data.val_targets = {targets:,} ends within the first document, but the tokenizer "
                "normalises text and needs whole documents: set --data.val-bytes, which cuts any "
                f"text, or --data.val-targets {ends[0] - 1}"
            )
        end, texts = ends[count - 1], whole.texts[:count]
    return whole._replace(tokens=tokens[:end], texts=texts), begun


def _first_bytes(
    whole: Stream, starts: list[int], ends: list[int], size: int, tokenizer: Tokenizer
) -> tuple[Stream, int]:
    """Return the first `size` bytes of a text, and how many of its documents have begun there.

    A document that is cut, at a character, is encoded as what is left of it; so its bytes are
    original under any tokenizer.
    """
    byte_ends = list(accumulate(len(text.encode()) for text in whole.texts))
    last = bisect_left(byte_ends, size)
    tokens, texts = whole.tokens[: ends[last]], whole.texts[: last + 1]
    if surplus := byte_ends[last] - size:
        texts[last] = texts[last].encode()[:-surplus].decode(errors="ignore")
        tokens = np.concatenate([tokens[: starts[last]], *tokenizer.encode(texts[last:])])
    return whole._replace(tokens=tokens, texts=texts), last + 1


def require_restored(stream: Stream, tokenizer: Tokenizer) -> None:
    """Check that a text comes back from its tokens, so that its bytes are what is predicted.

    Raises:
        UserError: if a token is an unknown piece, the tokenizer normalises by another rule than
            SentencePiece's own, or a document comes back neither as it was nor in its normal form.
    """
    _require_rule(stream, tokenizer)
    _require_known(stream, tokenizer)
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
        UserError: if they do not begin with BOS, are unknown, control or unused pieces, or if a
            document counts other bytes than its decoded text has.
    """
    _require_known(stream, tokenizer)
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
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{stream.name}: the tokens of document {first + 1:,} count {counted[first]:,} bytes, "
            f"but decode to {sizes[first]:,}: every document must begin with BOS "
            f"({tokenizer.bos}) and be valid UTF-8"
        )


def _require_known(stream: Stream, tokenizer: Tokenizer) -> None:
    if unknown := tokenizer.unknown(stream.tokens):
        raise UserError(
            f"{stream.name}: {unknown:,} of {len(stream.tokens):,} tokens are unknown pieces: use "
            "a tokenizer with byte fallback"
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


def require_scorable(stream: Stream, tokenizer: Tokenizer) -> Stream:
    """Return a stream; a score per byte of one without text is not a number.

    Raises:
        UserError: if it has no text, or unknown pieces.
    """
    _require_known(stream, tokenizer)
    if not tokenizer.token_bytes(stream.tokens).any():
        raise UserError(f"{stream.name} contains no text that the tokenizer keeps")
    return stream
