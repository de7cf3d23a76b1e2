"""The audit's checks of the scored text and of the tokenizer that stands between it and the model.

Whoever made the run could have exchanged the text, or put it into the tokenizer; so the text is
compared with its source, and the tokenizer is trained again, where these are at hand.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from paramgolf.config import RunConfig
from paramgolf.data import corpus, shards
from paramgolf.data.chunks import exact_key
from paramgolf.data.claims import described, is_self_reported
from paramgolf.data.documents import Document, find_jsonl, read_jsonl
from paramgolf.data.prepared import PreparedText
from paramgolf.data.streams import Stream, cut, of_shards, require_counted, require_restored
from paramgolf.data.text_source import kind_of_text
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.files import read_tensors
from paramgolf.runtime.records import read_environment
from paramgolf.runtime.rundir import RunDir
from paramgolf.verify.checks import Check, at_most, check, not_verified

ORIGIN = "origin of the tokenizer"
"""Name of the check."""
_MAX_LONG_PIECE_SHARE = 0.01


def text_checks(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Iterator[Check]:
    """Yield all checks of text and tokenizer."""
    tokenizer, prepared = Tokenizer.load(run.tokenizer), PreparedText.of(run)
    text = prepared.found_text(run.data, tokenizer)
    yield _sizes(run, results, prepared, text)
    yield _restored(text, tokenizer)
    yield _source(config, text, tokenizer, same_python(run))
    yield _claim(run, results, prepared, tokenizer)
    share = tokenizer.long_piece_bytes(text.tokens) / max(1, text.bytes)
    figure = (
        f"{share:.2%} of the bytes are in pieces of more than three words or 24 characters "
        f"(limit {_MAX_LONG_PIECE_SHARE:.0%})"
    )
    yield at_most("pieces hold no text", "bytes", share, _MAX_LONG_PIECE_SHARE, figure)


def same_python(run: RunDir) -> bool:
    """Return whether this Python has the standard library that the run read."""
    return read_environment(run)["python"] == platform.python_version()


def _sizes(run: RunDir, results: dict[str, Any], prepared: PreparedText, text: Stream) -> Check:
    """Compare the documents with what every file says of their text."""
    sizes = [len(document.encode()) for document in text.texts]
    found = {"sha256": text.sha256, "bytes": sum(sizes), "documents": len(sizes)}
    split = prepared.splits["val"]
    tensors, notes = read_tensors(run.documents)
    good = {key: results["text"][key] for key in found} == found
    good &= (split.text_sha256, split.bytes, split.documents) == tuple(found.values())
    good &= notes["text_sha256"] == found["sha256"] and tensors["bytes"].tolist() == sizes
    good &= all(score["bytes"] == found["bytes"] for score in results["stages"].values())
    good &= results["text"]["bytes_are"] == split.bytes_are == text.bytes_are
    good &= {score["bytes_are"] for score in results["stages"].values()} == {text.bytes_are}
    figure = (
        f"{found['bytes']:,} bytes ({text.bytes_are}) of {len(sizes):,} documents, SHA-256 "
        f"{text.sha256[:16]}; {results['text']['bytes']:,} bytes, "
        f"{results['text']['sha256'][:16]} reported"
    )
    return check("bytes of the text", "bytes", good, figure)


def _restored(text: Stream, tokenizer: Tokenizer) -> Check:
    """Check that the text, or its normal form, comes back from the scored tokens."""
    name = "tokens restore the text"
    try:
        require_restored(text, tokenizer)
        require_counted(text, tokenizer)
    except UserError as error:
        return check(name, "bytes", False, str(error))
    form = text.restored(tokenizer)
    shown = "as they are" if form == "original" else f"as {form}: less is predicted"
    figure = f"{len(text.texts):,} documents come back {shown}, none unknown"
    return check(name, "bytes", True, figure)


def _source(config: RunConfig, text: Stream, tokenizer: Tokenizer, same: bool) -> Check:
    """Compare the text with the validation text of its source.

    The documentation of the standard library can be compared only under the `same` Python.
    """
    name = "the text is that of its source"
    source = config.data.source
    try:
        whole = _validation_of(config, tokenizer) if same or source != "stdlib" else None
    except UserError:
        whole = None
    if whole is None:
        figure = f"source not at hand: {Path(source).name}"
        return Check(name, "bytes", "not applicable", figure, "self-reported")
    whole, _ = cut(whole, config.data, tokenizer)
    good = (whole.texts, whole.bytes_are) == (text.texts, text.bytes_are)
    figure = f"{len(whole.texts):,} documents of {Path(source).name}, SHA-256 {whole.sha256[:16]}"
    return check(name, "bytes", good, figure if good else f"differs from {figure}")


def _validation_of(config: RunConfig, tokenizer: Tokenizer) -> Stream | None:
    """Return the validation text of a run's source, None if it is not at hand."""
    data, folder = config.data, Path(config.data.source)
    match kind_of_text(data.source):
        case "stdlib":
            shares = {"val": data.val_share, "adapt": data.adapt_share}
            documents = corpus.split_by_hash(corpus.stdlib_documents(), shares, rest="train")["val"]
        case "jsonl":
            documents = list(chain.from_iterable(map(read_jsonl, find_jsonl(folder, "val"))))
        case "shards":
            paths = shards.find_shards(folder, "val")
            return of_shards(paths, tokenizer) if paths else None
    texts = [text for _, text in documents]
    return Stream("the source", np.concatenate(tokenizer.encode(texts)), texts) if texts else None


def _claim(
    run: RunDir, results: dict[str, Any], prepared: PreparedText, tokenizer: Tokenizer
) -> Check:
    """Check where the tokenizer comes from: train it again, look it up, or count it."""
    name, claim = ORIGIN, results["tokenizer"]
    stated = (run.stage_result("prepare") or {}).get("tokenizer")
    if claim != stated or claim["sha256"] != tokenizer.sha256:
        return check(name, "bytes", False, "results, stage and tokenizer.model disagree")
    size = results["bytes"]
    if claim["claim"] == "given":
        counted = size["total"] - size["model"] - size["code"]
        figure = f"given: {len(tokenizer.model):,} bytes, {counted:,} counted in the budget"
        return check(name, "bytes", counted == len(tokenizer.model), figure)
    if claim["claim"] == "known":
        if not is_self_reported(claim):
            return check(name, "bytes", True, described(claim))
        origin = claim["origin"]
        if not is_fetched(origin):
            return check(name, "bytes", False, "neither on the list nor fetched by `data fetch`")
        figure = (
            f"fetched from {origin['repo']} at {origin['revision'][:12]}, as source.json says: "
            "`paramgolf verify` fetches it again"
        )
        return check(name, "bytes", True, figure, "self-reported")
    paths = prepared.shards("train", run.data)
    if gone := [path for path in paths if not path.exists()]:
        return not_verified(check(name, "bytes", True, described(claim)), gone[0])
    again = _trained_again(paths, claim, tokenizer)
    figure = described(claim) if again else f"trained again, it is another than the run's: {claim}"
    return check(name, "bytes", again, figure)


def is_fetched(origin: Any) -> bool:
    """Return whether a tokenizer's origin is what `data fetch` records."""
    keys = ("repo", "revision", "dataset")
    return isinstance(origin, dict) and all(isinstance(origin.get(key), str) for key in keys)


def _trained_again(paths: Sequence[Path], claim: dict[str, Any], tokenizer: Tokenizer) -> bool:
    """Return whether training on the decoded training shards gives the same tokenizer."""
    parts = shards.whole_documents(paths, tokenizer.bos)
    texts = list(chain.from_iterable(map(tokenizer.decode_documents, parts)))
    origin = claim["origin"]
    if (count := origin["documents"]) is not None:
        texts = sorted(texts, key=lambda text: exact_key(Document("", text))[0])[:count]
    try:
        return train_tokenizer(texts, claim["pieces"], origin["case_ops"]) == tokenizer.model
    except UserError:  # no such tokenizer can be trained on that text
        return False
