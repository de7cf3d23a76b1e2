"""Turn text into shards: read, split, train or load the tokenizer, encode, hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramgolf.config import DataConfig
from paramgolf.data import shards
from paramgolf.data.claims import tokenizer_claim
from paramgolf.data.documents import (
    JSONL_NAMES,
    Document,
    batches,
    find_jsonl,
    jsonl_lines,
    read_jsonl,
    text_digest,
)
from paramgolf.data.manifest import built_by_us, require_tokenizer
from paramgolf.data.prepared import PreparedText, Split
from paramgolf.data.run_texts import RunTexts
from paramgolf.data.sidecars import check_sidecars
from paramgolf.data.streams import (
    ORIGINALS,
    Stream,
    cut,
    of_shards,
    require_counted,
    require_restored,
    require_scorable,
)
from paramgolf.data.text_source import kind_of_text, load_tokenizer, tokenizer_of_shards
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import write_bytes
from paramgolf.stages.job import Job

_BATCH_CHARS = 1 << 24


def run(job: Job) -> dict[str, Any]:
    """Prepare the text, on rank 0.

    Returns:
        The stage result: "text" is a `PreparedText`, "tokenizer" what `tokenizer_claim` returns,
        what it "restores" (`Stream.restored`), its "long_piece_share" and "impossible_pairs",
        "overlap" what `RunTexts.overlaps` states.
    """
    if not job.runtime.ranks.main:
        return {}
    source = job.config.data.source
    made = _prepare_shards(job, source) if kind_of_text(source) == "shards" else _documents(job)
    with job.ledger.phase("data: overlap"):
        progress = job.reporter.progress("read texts", unit="tokens")
        data, tokenizer = job.run.data, made.tokenizer
        try:
            from paramgolf.data.kept import read_texts
        except ModuleNotFoundError:  # in the code file, whose bytes count
            read_texts = RunTexts
        found = read_texts(made.text, data, tokenizer, made.hashes, progress.update)
        train_sha256 = found.text.splits["train"].text_sha256
        claim = tokenizer_claim(tokenizer, made.file, train_sha256)
        found.provenance(claim["claim"]).save(data / "provenance.safetensors")
    return {
        "text": found.text.to_json(),
        "tokenizer": {**claim, **made.form},
        "overlap": {name: overlap._asdict() for name, overlap in found.overlaps.items()},
    }


class _Made(NamedTuple):
    """The shards of a run."""

    text: PreparedText
    """Hash and sizes of the training text may be missing."""
    tokenizer: Tokenizer
    form: dict[str, Any]
    """What the tokenizer "restores", its "long_piece_share" and "impossible_pairs"."""
    file: Path | None
    """Where it was read; None: it was trained."""
    hashes: dict[Path, str]
    """SHA-256 of shards, where they are known."""


# Documents: the library's documentation, or JSON Lines.


def _documents(job: Job) -> _Made:
    config, source = job.config, job.config.data.source
    with job.ledger.phase("data: corpus"):
        splits, digest = _read_stdlib(job) if source == "stdlib" else _read_jsonl(job)
    file = Path(config.data.tokenizer) if config.data.tokenizer else None
    tokenizer = _tokenizer(job, file, splits["train"])
    with job.ledger.phase("data: encode"):
        encoded = {
            name: _encode(documents, tokenizer, name, job.reporter)
            for name, documents in splits.items()
            if documents or name != "adapt"
        }
        require_restored(encoded["val"], tokenizer)
        _cut_validation(encoded, config.data, tokenizer)
        return _Made(*_write(job, digest, tokenizer, encoded), file, {})


def _read_stdlib(job: Job) -> tuple[dict[str, list[Document]], str]:
    """Return the documents of every split, and the SHA-256 of all of them."""
    from paramgolf.data import corpus  # not in a bundle, which comes with text and tokenizer

    reporter, data = job.reporter, job.config.data
    documents = corpus.stdlib_documents(reporter.progress("corpus", unit="files").update)
    shares = {"val": data.val_share, "adapt": data.adapt_share}
    splits = corpus.split_by_hash(documents, shares, rest="train")
    digest = text_digest(document.text for document in documents).hex()
    size = sum(len(document.text.encode()) for document in documents)
    reporter.detail(f"  corpus    {len(documents)} documents, {size:,} bytes, sha256 {digest[:16]}")
    return splits, digest


def _read_jsonl(job: Job) -> tuple[dict[str, list[Document]], str]:
    """Return the documents of every split, and the SHA-256 of all of them."""
    folder = Path(job.config.data.source)
    splits: dict[str, list[Document]] = {}
    for name in ("train", "val"):
        files = find_jsonl(folder, name)
        if not files:
            raise UserError(f"{folder} contains no {name}*.{JSONL_NAMES}")
        splits[name] = []
        for path in files:
            progress = job.reporter.progress(f"read {name}", unit="bytes")
            splits[name] += read_jsonl(path, progress.update)
    return splits, text_digest(text for split in splits.values() for _, text in split).hex()


def _encode(
    documents: list[Document], tokenizer: Tokenizer, name: str, reporter: Reporter
) -> Stream:
    if not documents:
        raise UserError(f"the {name!r} split has no documents; provide more text")
    progress = reporter.progress(f"encode {name}", sum(len(text) for _, text in documents), "chars")
    parts: list[NDArray[np.uint16]] = []
    done = 0
    for batch in batches(documents, _BATCH_CHARS):
        parts += tokenizer.encode([text for _, text in batch])
        done += sum(len(text) for _, text in batch)
        progress.update(done)
    texts = [text for _, text in documents]
    return Stream(f"the {name!r} split", np.concatenate(parts), texts)


# Token shards.


def _prepare_shards(job: Job, source: str) -> _Made:
    """Prepare a folder of shards; the training shards are used where they are."""
    data, folder = job.config.data, Path(source)
    file = tokenizer_of_shards(data)
    tokenizer = _tokenizer(job, file)
    require_tokenizer(folder, tokenizer.sha256)
    files = {name: paths for name, paths in shards.find_splits(folder).items() if paths}
    if "val" not in files:
        raise UserError(f"{folder} contains no *_val_*.bin")
    with job.ledger.phase("data: check shards"):
        _check_shards(files, tokenizer, job.reporter)
        val = of_shards(files["val"], tokenizer)
        require_counted(val, tokenizer)
        hashes = {name: shards.sha256_of_files(paths) for name, paths in files.items()}
        names = [str(path.resolve()) for path in files["train"]]
        tokens = sum(len(shards.open_shard(path)) for path in files["train"])
        known = _as_built(folder, hashes)
        train = replace(known, shards=names, tokens=tokens)
        encoded = {"val": val}
        if "adapt" in files:
            stream = shards.read_stream(files["adapt"])
            texts = tokenizer.decode_documents(stream)
            encoded["adapt"] = Stream("the 'adapt' split", stream, texts, known.bytes_are)
        _cut_validation(encoded, data, tokenizer)
        digest = hashlib.sha256("".join(hashes["train"] + hashes["val"]).encode()).hexdigest()
        of_train = dict(zip(map(Path, names), hashes["train"], strict=True))
        return _Made(*_write(job, digest, tokenizer, encoded, train), file, of_train)


def _check_shards(files: dict[str, list[Path]], tokenizer: Tokenizer, reporter: Reporter) -> None:
    """Check that tokens and sidecars match the tokenizer."""
    for paths in files.values():
        for path in paths:
            shards.check_vocabulary(path, shards.open_shard(path), tokenizer.vocab_size)
        found = check_sidecars(paths, tokenizer)
        if found.bytes != found.table_bytes:
            reporter.line(
                f"  sidecars  {found.bytes:,} bytes of the original text; the tokenizer, which "
                f"normalises, counts {found.table_bytes:,}"
            )


def _as_built(folder: Path, hashes: dict[str, list[str]]) -> Split:
    """Return the training split as `data build` recorded it; without text if it did not."""
    built = built_by_us(folder)
    if built is not None:
        splits = built["splits"]
        if {name: list(own["shards"].values()) for name, own in splits.items()} == hashes:
            own = splits["train"]
            return Split([], 0, own["documents"], own["text_sha256"], own["bytes"], "original")
    return Split([], 0, 0, "", 0, "as decoded")


# Both.


def _tokenizer(job: Job, file: Path | None, documents: Sequence[Document] = ()) -> Tokenizer:
    """Load the tokenizer from a file; if none is named, train it on the documents."""
    vocab_size = job.config.model.vocab_size
    with job.ledger.phase("data: tokenizer"):
        if file is not None:
            tokenizer = load_tokenizer(file, vocab_size)
        else:
            from paramgolf.data.tokenizer_training import train_tokenizer

            texts = (document.text for document in documents)
            tokenizer = Tokenizer(train_tokenizer(texts, vocab_size, job.config.data.case_ops))
        write_bytes(job.run.tokenizer, tokenizer.model)
    return tokenizer


def _cut_validation(encoded: dict[str, Stream], data: DataConfig, tokenizer: Tokenizer) -> None:
    """Keep what is scored of the validation split.

    The documents behind it become the adaptation split if the source has none.
    """
    val, rest = cut(encoded["val"], data, tokenizer)
    if data.cuts:
        val = val._replace(name="what data.val_bytes and data.val_targets leave of the 'val' split")
    encoded["val"] = require_scorable(val, tokenizer)
    if "adapt" not in encoded and rest is not None:
        encoded["adapt"] = rest


def _write(
    job: Job,
    corpus_sha256: str,
    tokenizer: Tokenizer,
    encoded: dict[str, Stream],
    train: Split | None = None,
) -> tuple[PreparedText, Tokenizer, dict[str, Any]]:
    """Write the shards of the encoded splits; return the first fields of `_Made`, and the form.

    Args:
        job: the run.
        corpus_sha256: of the whole source.
        tokenizer: of the splits.
        encoded: the splits to write.
        train: the training split, if its shards are used where they are.
    """
    data, shard_tokens = job.run.data, job.config.data.shard_tokens
    splits = {"train": train} if train else {}
    for name, stream in encoded.items():
        tokens = stream.tokens
        if len(tokens) < 2:
            raise UserError(f"the {name!r} split has no text to predict; provide more documents")
        writer = shards.ShardWriter(data, name, shard_tokens)
        writer.add(tokens)
        splits[name] = Split(
            writer.finish(),
            len(tokens),
            len(stream.texts),
            stream.sha256,
            stream.bytes,
            stream.bytes_are,
        )
    val = encoded["val"]
    if (restores := val.restored(tokenizer)) != "original":
        write_bytes(data / ORIGINALS, jsonl_lines(val.texts))
    source = str(Path(job.config.data.source))
    prepared = PreparedText(source, corpus_sha256, tokenizer.sha256, splits)
    share = tokenizer.long_piece_bytes(val.tokens) / val.bytes if val.bytes else 0.0
    form = {"restores": restores, "long_piece_share": share}
    return prepared, tokenizer, {**form, "impossible_pairs": tokenizer.impossible_pairs(val.tokens)}
