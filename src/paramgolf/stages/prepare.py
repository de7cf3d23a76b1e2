"""Text to shards: read documents, split, train or load the tokenizer, encode, take shingles."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paramgolf.data import shards
from paramgolf.data.documents import Document, batches, find_jsonl, read_jsonl, text_digest
from paramgolf.data.encoding import Stream, encode_documents
from paramgolf.data.fingerprints import fingerprints
from paramgolf.data.prepared import PreparedText, Split
from paramgolf.data.provenance import Gathering, Provenance, Text
from paramgolf.data.sidecars import check_sidecars
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import read_json, sha256_of_file, write_bytes
from paramgolf.stages.job import Job

_BATCH_CHARS = 1 << 24
_GIVEN = "not known: the tokenizer was given"


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
        made_of = _GIVEN if config.data.tokenizer else "train"
        return _finish(job, "stdlib", digest, tokenizer, encoded, made_of)


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
        made_of = _GIVEN if job.config.data.tokenizer else "train"
        return _finish(job, str(folder), digest, tokenizer, encoded, made_of)


def _from_shards(folder: Path, job: Job) -> PreparedText:
    config, ledger = job.config, job.ledger
    given = Path(config.data.tokenizer or folder / "tokenizer.model")
    if not given.is_file():
        raise UserError(
            f"shards come with a tokenizer, and there is no {given}: name it with --data.tokenizer"
        )
    tokenizer = _given_tokenizer(job, given)
    files = shards.find_splits(folder)
    if not files["val"]:
        raise UserError(f"{folder} holds no *_val_*.bin")
    with ledger.phase("data: check shards"):
        for path in (path for paths in files.values() for path in paths):
            shards.check_vocabulary(path, shards.open_shard(path), tokenizer.vocab_size)
        sizes: dict[str, int | None] = {}
        for name, paths in files.items():
            found = check_sidecars(paths, tokenizer)
            sizes[name] = found.bytes if found.number == len(paths) else None
            if found.bytes != found.table_bytes:
                job.reporter.line(
                    f"  sidecars  {found.bytes:,} bytes of the original text; the tokenizer, which "
                    f"normalises, counts {found.table_bytes:,}"
                )
        texts, made_of = _texts_of_shards(folder, files, tokenizer, job)
        sizes |= _sizes_as_built(folder, files)
        names = [str(path.resolve()) for path in files["train"]]
        tokens = sum(len(shards.open_shard(path)) for path in files["train"])
        train = Split(names, tokens, len(texts["train"].documents), texts["train"].sha256)
        encoded = {
            name: _Encoded(shards.read_stream(files[name]), texts[name], sizes[name])
            for name in ("val", "adapt")
            if files[name]
        }
        hashes = "".join(sha256_of_file(path) for name in ("train", "val") for path in files[name])
        _cut_validation(encoded, config.data.val_targets, tokenizer)
        digest = hashlib.sha256(hashes.encode()).hexdigest()
        existing = {"train": (train, texts["train"])}
        return _finish(job, str(folder), digest, tokenizer, encoded, made_of, existing)


def _texts_of_shards(
    folder: Path, files: dict[str, list[Path]], tokenizer: Tokenizer, job: Job
) -> tuple[dict[str, Text], str]:
    """What shards are recognised by, and of what their tokenizer was made.

    As their maker says, if it says it of these very shards; else they are decoded.
    """
    beside = folder / "provenance.safetensors"
    if beside.exists():
        known = Provenance.load(beside)
        wanted = {name: tuple(map(sha256_of_file, paths)) for name, paths in files.items() if paths}
        stated = {name: text.shards for name, text in known.texts.items()}
        if stated == wanted:
            own = not job.config.data.tokenizer
            return known.texts, known.uses.get("tokenizer", _GIVEN) if own else _GIVEN
    progress = job.reporter.progress("decode", sum(map(len, files.values())), "shards")
    texts: dict[str, Text] = {}
    done = 0
    for name, paths in files.items():
        gathering, digest = Gathering(), hashlib.sha256()
        for documents in shards.whole_documents(paths, tokenizer.bos):
            decoded = tokenizer.decode_documents(documents)
            gathering.add(fingerprints(decoded))
            for text in decoded:
                digest.update(text.encode() + b"\0")
            done += 1
            progress.update(done)
        texts[name] = gathering.text(digest.hexdigest())
    return texts, _GIVEN


def _sizes_as_built(folder: Path, files: dict[str, list[Path]]) -> dict[str, int | None]:
    """Bytes of the documents of shards to score or adapt on, as `data build` says of just these."""
    manifest = folder / shards.MANIFEST
    made = read_json(manifest) if manifest.exists() else {}
    if "paramgolf" not in made:  # none, or another program's
        return {}
    return {
        name: split["bytes"]
        for name, split in made["splits"].items()
        if name != "train"  # gigabytes, whose bytes nobody asks for
        and split["shards"] == {path.name: sha256_of_file(path) for path in files.get(name, ())}
    }


class _Encoded(NamedTuple):
    """One split, encoded."""

    tokens: Stream
    text: Text
    original_bytes: int | None
    """Of the text as it was given; None if it was cut by tokens, or came as tokens alone."""


def _finish(
    job: Job,
    source: str,
    corpus_sha256: str,
    tokenizer: Tokenizer,
    encoded: dict[str, _Encoded],
    made_of: str,
    existing: dict[str, tuple[Split, Text]] | None = None,
) -> PreparedText:
    """Write the shards of the encoded splits, and what is kept of all texts; describe them."""
    existing = existing or {}
    data, shard_tokens = job.run.data, job.config.data.shard_tokens
    splits = {name: split for name, (split, _) in existing.items()}
    texts = {name: text for name, (_, text) in existing.items()}
    for name, (tokens, text, size) in encoded.items():
        if len(tokens) < 2:
            raise UserError(f"the {name!r} split has no text to predict; give more documents")
        writer = shards.ShardWriter(data, name, shard_tokens)
        writer.add(tokens)
        splits[name] = Split(writer.finish(), len(tokens), len(text.documents), text.sha256, size)
        texts[name] = text
    prepared = PreparedText(source, corpus_sha256, tokenizer.sha256, splits)
    for name, text in texts.items():
        hashes = tuple(sha256_of_file(path) for path in prepared.shards(name, data))
        texts[name] = dataclasses.replace(text, shards=hashes)
    uses = {"training": "train", "calibration": "train", "tokenizer": made_of}
    Provenance(texts, uses).save(data / "provenance.safetensors")
    return prepared


def _tokenizer(job: Job, documents: list[Document]) -> Tokenizer:
    config = job.config
    if config.data.tokenizer:
        return _given_tokenizer(job, Path(config.data.tokenizer))
    from paramgolf.data.tokenizer_training import train_tokenizer

    with job.ledger.phase("data: tokenizer"):
        texts = (document.text for document in documents)
        tokenizer = Tokenizer(train_tokenizer(texts, config.model.vocab_size, config.data.case_ops))
        write_bytes(job.run.tokenizer, tokenizer.model)
    return tokenizer


def _given_tokenizer(job: Job, path: Path) -> Tokenizer:
    wanted = job.config.model.vocab_size
    with job.ledger.phase("data: tokenizer"):
        tokenizer = Tokenizer.load(path)
        if tokenizer.vocab_size != wanted:
            raise UserError(
                f"{path} has {tokenizer.vocab_size} pieces, but model.vocab_size = {wanted}; set "
                f"--model.vocab-size {tokenizer.vocab_size}"
            )
        write_bytes(job.run.tokenizer, tokenizer.model)
    return tokenizer


def _described(tokens: Stream, tokenizer: Tokenizer) -> _Encoded:
    """A stream with what its decoded text says."""
    texts = tokenizer.decode_documents(tokens)
    return _Encoded(tokens, Text.of(texts, text_digest(texts).hex()), None)


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


def _encode(
    documents: list[Document], tokenizer: Tokenizer, name: str, reporter: Reporter
) -> _Encoded:
    """Encode all documents."""
    if not documents:
        raise UserError(f"the {name!r} split has no documents; give more text")
    progress = reporter.progress(f"encode {name}", sum(len(text) for _, text in documents), "chars")
    tokens: list[Stream] = []
    gathering = Gathering()
    done = 0
    for batch in batches(documents, _BATCH_CHARS):
        encoded = encode_documents(batch, tokenizer)
        tokens.append(encoded.tokens)
        gathering.add(encoded.prints)
        done += sum(len(text) for _, text in batch)
        progress.update(done)
    digest = text_digest(document.text for document in documents).hex()
    size = sum(len(text.encode()) for _, text in documents)
    return _Encoded(np.concatenate(tokens), gathering.text(digest), size)
