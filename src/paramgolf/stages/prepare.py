"""Turn text into shards: read, split, train or load the tokenizer, encode, hash."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paramgolf.data import shards
from paramgolf.data.documents import Document, batches, find_jsonl, read_jsonl, text_digest
from paramgolf.data.encoding import Stream, encode_documents
from paramgolf.data.fingerprints import fingerprints
from paramgolf.data.prepared import PreparedText, Split
from paramgolf.data.provenance import TOKENIZER_GIVEN, Gathering, Provenance, Text
from paramgolf.data.sidecars import check_sidecars
from paramgolf.data.text_source import kind_of_text, load_tokenizer, tokenizer_of_shards
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.console import Reporter
from paramgolf.runtime.files import read_json, sha256_of_file, write_bytes
from paramgolf.stages.job import Job

_BATCH_CHARS = 1 << 24


class _EncodedSplit(NamedTuple):
    tokens: Stream
    text: Text
    original_bytes: int | None
    """Of the original text; None if it was cut between tokens or given as tokens alone."""


def run(job: Job) -> dict[str, Any]:
    """Prepare the text, on rank 0; return the stage result, which contains a `PreparedText`."""
    if not job.runtime.ranks.main:
        return {}
    return {"text": _prepare(job).to_json()}


def _prepare(job: Job) -> PreparedText:
    source = job.config.data.source
    if kind_of_text(source) == "shards":
        return _prepare_shards(job, Path(source))
    return _prepare_documents(job)


# Documents: the library's documentation, or JSON Lines.


def _prepare_documents(job: Job) -> PreparedText:
    config, source = job.config, job.config.data.source
    with job.ledger.phase("data: corpus"):
        splits, digest = _read_stdlib(job) if source == "stdlib" else _read_jsonl(job)
    tokenizer = _tokenizer(job, config.data.tokenizer, splits["train"])
    with job.ledger.phase("data: encode"):
        encoded = {
            name: _encode(documents, tokenizer, name, job.reporter)
            for name, documents in splits.items()
            if documents or name != "adapt"
        }
        _cut_validation(encoded, config.data.val_targets, tokenizer)
        tokenizer_text = _tokenizer_text(job, tokenizer, encoded["train"].text, "train")
        return _write(job, digest, tokenizer, tokenizer_text, encoded)


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
) -> _EncodedSplit:
    if not documents:
        raise UserError(f"the {name!r} split has no documents; provide more text")
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
    digest = text_digest(text for _, text in documents).hex()
    size = sum(len(text.encode()) for _, text in documents)
    return _EncodedSplit(np.concatenate(tokens), gathering.text(digest), size)


# Token shards.


def _prepare_shards(job: Job, folder: Path) -> PreparedText:
    """Prepare a folder of shards; the training shards are used where they are."""
    data = job.config.data
    tokenizer = _tokenizer(job, tokenizer_of_shards(data))
    files = shards.find_splits(folder)
    if not files["val"]:
        raise UserError(f"{folder} contains no *_val_*.bin")
    with job.ledger.phase("data: check shards"):
        sizes = _check_shards(files, tokenizer, job.reporter) | _sizes_as_built(folder, files)
        texts, tokenizer_text = _texts_of_shards(folder, files, tokenizer, job)
        encoded = {
            name: _EncodedSplit(shards.read_stream(files[name]), texts[name], sizes[name])
            for name in ("val", "adapt")
            if files[name]
        }
        _cut_validation(encoded, data.val_targets, tokenizer)
        hashes = "".join(sha256_of_file(path) for name in ("train", "val") for path in files[name])
        digest = hashlib.sha256(hashes.encode()).hexdigest()
        names = [str(path.resolve()) for path in files["train"]]
        tokens = sum(len(shards.open_shard(path)) for path in files["train"])
        train = Split(names, tokens, len(texts["train"].documents), texts["train"].sha256)
        return _write(
            job, digest, tokenizer, tokenizer_text, encoded, {"train": (train, texts["train"])}
        )


def _check_shards(
    files: dict[str, list[Path]], tokenizer: Tokenizer, reporter: Reporter
) -> dict[str, int | None]:
    """Check tokens and sidecars; return each split's original bytes, None where not known."""
    for path in (path for paths in files.values() for path in paths):
        shards.check_vocabulary(path, shards.open_shard(path), tokenizer.vocab_size)
    sizes: dict[str, int | None] = {}
    for name, paths in files.items():
        found = check_sidecars(paths, tokenizer)
        sizes[name] = found.bytes if found.number == len(paths) else None
        if found.bytes != found.table_bytes:
            reporter.line(
                f"  sidecars  {found.bytes:,} bytes of the original text; the tokenizer, which "
                f"normalises, counts {found.table_bytes:,}"
            )
    return sizes


def _texts_of_shards(
    folder: Path, files: dict[str, list[Path]], tokenizer: Tokenizer, job: Job
) -> tuple[dict[str, Text], str]:
    """Return the hashes of every split's text, and the text that the tokenizer was trained on.

    Both come from the folder's provenance if it is about exactly these shards; otherwise the
    shards are decoded.
    """
    file = folder / "provenance.safetensors"
    if file.exists():
        known = Provenance.load(file)
        found = {name: tuple(map(sha256_of_file, paths)) for name, paths in files.items() if paths}
        if found == {name: text.shards for name, text in known.texts.items()}:
            usual = known.uses.get("tokenizer", TOKENIZER_GIVEN)
            return known.texts, _tokenizer_text(job, tokenizer, known.texts["train"], usual)
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
    return texts, _tokenizer_text(job, tokenizer, texts["train"], TOKENIZER_GIVEN)


def _sizes_as_built(folder: Path, files: dict[str, list[Path]]) -> dict[str, int | None]:
    """Return the original bytes of the splits that `data build` wrote just as they are now."""
    manifest = folder / shards.MANIFEST
    built = read_json(manifest) if manifest.exists() else {}
    if "paramgolf" not in built:  # no manifest, or another program's
        return {}
    return {
        name: split["bytes"]
        for name, split in built["splits"].items()
        if name != "train"  # gigabytes to hash, and nobody needs their number of bytes
        and split["shards"] == {path.name: sha256_of_file(path) for path in files.get(name, ())}
    }


# Both.


def _tokenizer_text(job: Job, tokenizer: Tokenizer, train: Text, usual: str) -> str:
    """Return the text that the tokenizer was trained on: `usual`, if none was given.

    A given one may be the tokenizer of an earlier run on the same text, whose results and
    provenance lie beside it: in its directory, or in a bundle. Repeating that run then repeats its
    provenance, and with it the artifact.
    """
    file = Path(job.config.data.tokenizer)
    if not job.config.data.tokenizer:
        return usual
    results, provenance = file.with_name("results.json"), file.with_name(job.run.provenance.name)
    if results.exists() and provenance.exists():
        known = Provenance.load(provenance)
        if (
            read_json(results)["corpus"]["tokenizer_sha256"] == tokenizer.sha256
            and known.texts["train"].sha256 == train.sha256
        ):
            return known.uses["tokenizer"]
    return TOKENIZER_GIVEN


def _tokenizer(job: Job, file: str | Path, documents: Sequence[Document] = ()) -> Tokenizer:
    """Load the tokenizer from a file; if none is named, train it on the documents."""
    vocab_size = job.config.model.vocab_size
    with job.ledger.phase("data: tokenizer"):
        if file:
            tokenizer = load_tokenizer(Path(file), vocab_size)
        else:
            from paramgolf.data.tokenizer_training import train_tokenizer

            texts = (document.text for document in documents)
            tokenizer = Tokenizer(train_tokenizer(texts, vocab_size, job.config.data.case_ops))
        write_bytes(job.run.tokenizer, tokenizer.model)
    return tokenizer


def _cut_validation(encoded: dict[str, _EncodedSplit], targets: int, tokenizer: Tokenizer) -> None:
    """Keep the first `targets` targets for scoring.

    The whole documents after them become the adaptation split if the source has none.
    """
    tokens = encoded["val"].tokens
    if not 0 < targets < len(tokens) - 1:
        return
    encoded["val"] = _decoded(tokens[: targets + 1], tokenizer)
    starts = np.flatnonzero(tokens[targets + 1 :] == tokenizer.bos)
    if "adapt" not in encoded and len(starts):
        rest = tokens[targets + 1 + int(starts[0]) :]
        if len(rest) > len(starts):  # more than the BOS of empty documents
            encoded["adapt"] = _decoded(rest, tokenizer)


def _decoded(tokens: Stream, tokenizer: Tokenizer) -> _EncodedSplit:
    """Return a split of these tokens, with the hashes of its decoded text."""
    texts = tokenizer.decode_documents(tokens)
    return _EncodedSplit(tokens, Text.of(texts, text_digest(texts).hex()), None)


def _write(
    job: Job,
    corpus_sha256: str,
    tokenizer: Tokenizer,
    tokenizer_text: str,
    encoded: dict[str, _EncodedSplit],
    existing: dict[str, tuple[Split, Text]] | None = None,
) -> PreparedText:
    """Write the shards of the encoded splits and the provenance; return what was prepared.

    The shards of the `existing` splits are in place already.
    """
    existing = existing or {}
    data, shard_tokens = job.run.data, job.config.data.shard_tokens
    splits = {name: split for name, (split, _) in existing.items()}
    texts = {name: text for name, (_, text) in existing.items()}
    for name, (tokens, text, size) in encoded.items():
        if len(tokens) < 2:
            raise UserError(f"the {name!r} split has no text to predict; provide more documents")
        writer = shards.ShardWriter(data, name, shard_tokens)
        writer.add(tokens)
        splits[name] = Split(writer.finish(), len(tokens), len(text.documents), text.sha256, size)
        texts[name] = text
    source = str(Path(job.config.data.source))
    prepared = PreparedText(source, corpus_sha256, tokenizer.sha256, splits)
    for name, text in texts.items():
        hashes = tuple(sha256_of_file(path) for path in prepared.shards(name, data))
        texts[name] = dataclasses.replace(text, shards=hashes)
    uses = {"training": "train", "calibration": "train", "tokenizer": tokenizer_text}
    Provenance(texts, uses).save(data / "provenance.safetensors")
    return prepared
