"""Text to shards: read documents, split, train or load the tokenizer, encode, take shingles."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.console import Reporter
from paramgolf.data import shards
from paramgolf.data.documents import Document, find_jsonl, read_jsonl, text_digest
from paramgolf.data.fingerprints import fingerprints
from paramgolf.data.prepared import PreparedText, Split
from paramgolf.data.provenance import Gathering, Provenance, Text
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.job import Job
from paramgolf.rundir import sha256_of_file, write_bytes

_BATCH_CHARS = 1 << 24

Stream = NDArray[np.uint16]


def run(job: Job) -> dict[str, Any]:
    """Prepare the text, on rank 0; returns the stage's record, a `PreparedText`."""
    if not job.runtime.ranks.main:
        return {}
    return {"text": _prepare(job).to_json()}


def _prepare(job: Job) -> PreparedText:
    source = job.config.data.source
    if source == "stdlib":
        return _from_stdlib(job)
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f'data.source = {source!r} is no folder here; give a folder or "stdlib"')
    if find_jsonl(folder, "train"):
        return _from_jsonl(folder, job)
    if shards.find_shards(folder, "train"):
        return _from_shards(folder, job)
    raise UserError(
        f"{folder} holds neither train*.jsonl[.gz|.xz] nor *_train_*.bin; "
        "see `paramgolf run --help`, data.source"
    )


def _from_stdlib(job: Job) -> PreparedText:
    from paramgolf.data import corpus  # not in a bundle, which has a tokenizer, too

    config, reporter, ledger = job.config, job.reporter, job.ledger
    with ledger.phase("data: corpus"):
        documents = corpus.stdlib_documents(reporter.progress("corpus", unit="files").update)
        shares = {"val": config.data.val_share, "adapt": config.data.adapt_share}
        splits = corpus.split_by_hash(documents, shares, rest="train")
        digest = text_digest(document.text for document in documents).hex()
    size = sum(len(document.text.encode()) for document in documents)
    reporter.line(f"  corpus    {len(documents)} documents, {size:,} bytes, sha256 {digest[:16]}")
    tokenizer = _tokenizer(job, splits["train"])
    with ledger.phase("data: encode"):
        encoded = {
            name: _encode(parts, tokenizer, name, job.reporter)
            for name, parts in splits.items()
            if parts or name != "adapt"
        }
        _cut_validation(encoded, config.data.val_targets, tokenizer)
        return _finish(job, "stdlib", digest, tokenizer, encoded)


def _from_jsonl(folder: Path, job: Job) -> PreparedText:
    ledger = job.ledger
    with ledger.phase("data: corpus"):
        splits: dict[str, list[Document]] = {}
        for name in ("train", "val"):
            files = find_jsonl(folder, name)
            if not files:
                raise UserError(f"{folder} holds no {name}*.jsonl[.gz|.xz]")
            splits[name] = [
                document
                for path in files
                for document in read_jsonl(
                    path, job.reporter.progress(f"read {name}", unit="bytes").update
                )
            ]
        digest = text_digest(document.text for parts in splits.values() for document in parts).hex()
    tokenizer = _tokenizer(job, splits["train"])
    with ledger.phase("data: encode"):
        encoded = {
            name: _encode(parts, tokenizer, name, job.reporter) for name, parts in splits.items()
        }
        _cut_validation(encoded, job.config.data.val_targets, tokenizer)
        return _finish(job, str(folder), digest, tokenizer, encoded)


def _from_shards(folder: Path, job: Job) -> PreparedText:
    config, ledger = job.config, job.ledger
    if not config.data.tokenizer:
        raise UserError("shards come with a tokenizer: name its file with --data.tokenizer")
    tokenizer = _tokenizer(job, [])
    files = shards.find_shards(folder, "train")
    with ledger.phase("data: check shards"):
        progress = job.reporter.progress("shards", len(files))
        train_hash, tokens, known = hashlib.sha256(), 0, Gathering()
        rest = np.zeros(0, np.uint16)  # a document may go on in the next shard
        for number, path in enumerate(files):
            stream = shards.open_shard(path)
            shards.check_vocabulary(path, stream, tokenizer.vocab_size)
            train_hash.update(stream.tobytes())
            tokens += len(stream)
            stream = np.concatenate([rest, stream])
            begins = np.flatnonzero(stream == tokenizer.bos)
            last = int(begins[-1]) if len(begins) and number < len(files) - 1 else len(stream)
            stream, rest = stream[:last], stream[last:]
            known.add(fingerprints(tokenizer.decode_documents(stream) if len(stream) else []))
            progress.update(number + 1)
        text = known.text(train_hash.hexdigest())
        names = [str(path.resolve()) for path in files]
        train = Split(names, tokens, len(text.documents), text.sha256)
        val_files = shards.find_shards(folder, "val")
        if not val_files:
            raise UserError(f"{folder} holds no *_val_*.bin")
        adapt_files = shards.find_shards(folder, "adapt")
        for path in val_files + adapt_files:
            shards.check_vocabulary(path, shards.open_shard(path), tokenizer.vocab_size)
        val = shards.read_stream(val_files)
        encoded = {"val": _described(val, tokenizer)}
        if adapt_files:
            encoded["adapt"] = _described(shards.read_stream(adapt_files), tokenizer)
        _cut_validation(encoded, config.data.val_targets, tokenizer)
        digest = hashlib.sha256(
            train_hash.digest() + hashlib.sha256(val.tobytes()).digest()
        ).hexdigest()
        return _finish(job, str(folder), digest, tokenizer, encoded, {"train": (train, text)})


class _Encoded(NamedTuple):
    """One split, encoded."""

    tokens: Stream
    text: Text


def _finish(
    job: Job,
    source: str,
    corpus_sha256: str,
    tokenizer: Tokenizer,
    encoded: dict[str, _Encoded],
    existing: dict[str, tuple[Split, Text]] | None = None,
) -> PreparedText:
    """Write the shards of the encoded splits, and what is kept of all texts; describe them."""
    existing = existing or {}
    data, shard_tokens = job.run.data, job.config.data.shard_tokens
    splits = {name: split for name, (split, _) in existing.items()}
    texts = {name: text for name, (_, text) in existing.items()}
    for name, (tokens, text) in encoded.items():
        if len(tokens) < 2:
            raise UserError(f"the {name!r} split has no text to predict; give more documents")
        names = []
        for number, start in enumerate(range(0, len(tokens), shard_tokens)):
            names.append(f"text_{name}_{number:06d}.bin")
            shards.write_shard(data / names[-1], tokens[start : start + shard_tokens])
        splits[name] = Split(names, len(tokens), len(text.documents), text.sha256)
        texts[name] = text
    prepared = PreparedText(source, corpus_sha256, tokenizer.sha256, splits)
    for name, text in texts.items():
        hashes = tuple(sha256_of_file(path) for path in prepared.shards(name, data))
        texts[name] = dataclasses.replace(text, shards=hashes)
    given = job.config.data.tokenizer
    made_of = "not known: the tokenizer was given" if given else "train"
    uses = {"training": "train", "calibration": "train", "tokenizer": made_of}
    Provenance(texts, uses).save(data / "provenance.safetensors")
    return prepared


def _tokenizer(job: Job, documents: list[Document]) -> Tokenizer:
    config = job.config
    with job.ledger.phase("data: tokenizer"):
        if config.data.tokenizer:
            tokenizer = Tokenizer.load(Path(config.data.tokenizer))
        else:
            from paramgolf.data.tokenizer_training import train_tokenizer

            texts = (document.text for document in documents)
            tokenizer = Tokenizer(train_tokenizer(texts, config.model.vocab_size))
        if tokenizer.vocab_size != config.model.vocab_size:
            raise UserError(
                f"{config.data.tokenizer} has {tokenizer.vocab_size} pieces, but "
                f"model.vocab_size = {config.model.vocab_size}; set --model.vocab-size"
            )
        write_bytes(job.run.tokenizer, tokenizer.model)
    return tokenizer


def _described(tokens: Stream, tokenizer: Tokenizer) -> _Encoded:
    """A stream with what its decoded text says."""
    texts = tokenizer.decode_documents(tokens)
    return _Encoded(tokens, Text.of(texts, text_digest(texts).hex()))


def _cut_validation(encoded: dict[str, _Encoded], targets: int, tokenizer: Tokenizer) -> None:
    """Keep the first `targets` targets for scoring.

    Whole documents behind them are for adaptation, where the source has no split of its own.
    """
    tokens = encoded["val"].tokens
    if not 0 < targets < len(tokens) - 1:
        return
    encoded["val"] = _described(tokens[: targets + 1], tokenizer)
    starts = np.flatnonzero(tokens[targets + 1 :] == tokenizer.bos)
    if "adapt" not in encoded and len(starts):
        rest = tokens[targets + 1 + int(starts[0]) :]
        if len(rest) > len(starts):  # more than the BOS of empty documents
            encoded["adapt"] = _described(rest, tokenizer)


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document.text)
        size += len(document.text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(
    documents: list[Document], tokenizer: Tokenizer, name: str, reporter: Reporter
) -> _Encoded:
    """Encode all documents; SentencePiece uses all cores."""
    if not documents:
        raise UserError(f"the {name!r} split has no documents; give more text")
    progress = reporter.progress(f"encode {name}", sum(len(text) for _, text in documents), "chars")
    tokens: list[Stream] = []
    known = Gathering()
    done = 0
    for batch in _batches(documents):
        tokens += tokenizer.encode(batch)
        known.add(fingerprints(batch))
        done += sum(map(len, batch))
        progress.update(done)
    digest = text_digest(document.text for document in documents).hex()
    return _Encoded(np.concatenate(tokens), known.text(digest))
