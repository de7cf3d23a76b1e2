"""Turn text into shards: read, split, train or load the tokenizer, encode, hash."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramgolf.config import DataConfig
from paramgolf.data import shards
from paramgolf.data.claims import tokenizer_claim
from paramgolf.data.documents import (
    Document,
    batches,
    digest_record,
    find_jsonl,
    jsonl_lines,
    read_jsonl,
    text_digest,
)
from paramgolf.data.manifest import built_by_us, require_tokenizer
from paramgolf.data.overlap import measured_overlap
from paramgolf.data.prepared import PreparedText, Split
from paramgolf.data.provenance import RunTexts
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
from paramgolf.runtime.files import sha256_of_file, write_bytes
from paramgolf.stages.job import Job

_BATCH_CHARS = 1 << 24


def run(job: Job) -> dict[str, Any]:
    """Prepare the text, on rank 0.

    Returns:
        The stage result: "text" is a `PreparedText`, "tokenizer" what `tokenizer_claim` returns,
        what it "restores" (`Stream.restored`) and its "long_piece_share" and "impossible_pairs", "overlap" what
        `measured_overlap` returns.
    """
    if not job.runtime.ranks.main:
        return {}
    source = job.config.data.source
    if kind_of_text(source) == "shards":
        result = _prepare_shards(job, Path(source))
    else:
        result = _prepare_documents(job)
    with job.ledger.phase("data: overlap"):
        progress = job.reporter.progress("overlap", unit="tokens")
        text, tokenizer = PreparedText.from_json(result["text"]), Tokenizer.load(job.run.tokenizer)
        texts = RunTexts(text, job.run.data)
        overlaps = measured_overlap(text, job.run.data, tokenizer, progress.update, texts.add)
        texts.add("val", tokenizer.decode_documents(text.stream("val", job.run.data)))
        known = texts.provenance(tokenizer, result["tokenizer"]["claim"])
        known.save(job.run.data / "provenance.safetensors")
    return {**result, "overlap": {name: found._asdict() for name, found in overlaps.items()}}


# Documents: the library's documentation, or JSON Lines.


def _prepare_documents(job: Job) -> dict[str, Any]:
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
        claim = tokenizer_claim(tokenizer, file, encoded["train"].sha256)
        return _write(job, digest, tokenizer, claim, encoded)


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
            raise UserError(f"{folder} contains no {name}*.jsonl[.gz|.xz]")
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


def _prepare_shards(job: Job, folder: Path) -> dict[str, Any]:
    """Prepare a folder of shards; the training shards are used where they are."""
    data = job.config.data
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
        hashes = {name: list(map(sha256_of_file, paths)) for name, paths in files.items()}
        known = _as_built(folder, hashes)
        if known is None:
            known = _as_decoded(files, tokenizer, job.reporter)
        encoded = {"val": val}
        if "adapt" in files:
            tokens = shards.read_stream(files["adapt"])
            texts = tokenizer.decode_documents(tokens)
            bytes_are = known["adapt"].bytes_are
            encoded["adapt"] = Stream("the 'adapt' split", tokens, texts, bytes_are)
        _cut_validation(encoded, data, tokenizer)
        digest = hashlib.sha256("".join(hashes["train"] + hashes["val"]).encode()).hexdigest()
        names = [str(path.resolve()) for path in files["train"]]
        tokens = sum(len(shards.open_shard(path)) for path in files["train"])
        train = dataclasses.replace(known["train"], shards=names, tokens=tokens)
        claim = tokenizer_claim(tokenizer, file, train.text_sha256)
        return _write(job, digest, tokenizer, claim, encoded, train)


def _check_shards(files: dict[str, list[Path]], tokenizer: Tokenizer, reporter: Reporter) -> None:
    """Check that tokens and sidecars match the tokenizer."""
    for path in (path for paths in files.values() for path in paths):
        shards.check_vocabulary(path, shards.open_shard(path), tokenizer.vocab_size)
    for paths in files.values():
        found = check_sidecars(paths, tokenizer)
        if found.bytes != found.table_bytes:
            reporter.line(
                f"  sidecars  {found.bytes:,} bytes of the original text; the tokenizer, which "
                f"normalises, counts {found.table_bytes:,}"
            )


def _as_built(folder: Path, hashes: dict[str, list[str]]) -> dict[str, Split] | None:
    """Return what `data build` recorded of the splits; None if they are not as it wrote them."""
    built = built_by_us(folder)
    if built is None:
        return None
    if {name: list(split["shards"].values()) for name, split in built["splits"].items()} != hashes:
        return None
    return {
        name: Split([], 0, split["documents"], split["text_sha256"], split["bytes"], "original")
        for name, split in built["splits"].items()
    }


def _as_decoded(
    files: dict[str, list[Path]], tokenizer: Tokenizer, reporter: Reporter
) -> dict[str, Split]:
    """Decode all shards for the hashes and sizes of their text."""
    progress = reporter.progress("decode", sum(map(len, files.values())), "shards")
    found: dict[str, Split] = {}
    done = 0
    for name, paths in files.items():
        digest, count, size = hashlib.sha256(), 0, 0
        for documents in shards.whole_documents(paths, tokenizer.bos):
            for text in tokenizer.decode_documents(documents):
                digest.update(digest_record(text))
                count += 1
                size += len(text.encode())
            done += 1
            progress.update(done)
        found[name] = Split([], 0, count, digest.hexdigest(), size, "as decoded")
    return found


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
    claim: dict[str, Any],
    encoded: dict[str, Stream],
    train: Split | None = None,
) -> dict[str, Any]:
    """Write the shards of the encoded splits; return the stage result.

    Args:
        job: the run.
        corpus_sha256: of the whole source.
        tokenizer: of the splits.
        claim: what the run claims of it.
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
    claim = {**claim, "restores": restores, "long_piece_share": share}
    return {
        "text": prepared.to_json(),
        "tokenizer": {**claim, "impossible_pairs": tokenizer.impossible_pairs(val.tokens)},
    }
