"""What the audit derives again of results.json and quantization.json, and what it cannot.

`KEYS` says for every key of results.json which of the two it is. Losses and labels are derived by
scoring again (`verify.audit`, `verify.measured`); all other keys that can be, here.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from paramgolf.codefile.build import portable
from paramgolf.codefile.reading import configuration_in
from paramgolf.compress.artifact import Artifact, bytes_by_part, read
from paramgolf.compress.quantized import Quantized
from paramgolf.compress.scales import MAX_INTEGER
from paramgolf.config import RunConfig, ScoreFirstConfig
from paramgolf.data.documents import find_jsonl, read_jsonl, text_digest
from paramgolf.data.prepared import PreparedText
from paramgolf.data.provenance import Provenance
from paramgolf.data.shards import find_splits, open_shard
from paramgolf.data.streams import Stream
from paramgolf.data.text_source import kind_of_text
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.errors import UserError
from paramgolf.runtime.files import sha256_of_file
from paramgolf.runtime.records import read_environment, read_quantization
from paramgolf.runtime.rundir import RunDir
from paramgolf.scoring.modes import ORDER, score_modes
from paramgolf.verify.checks import Check, Kind, check, guarded, not_verified
from paramgolf.verify.overlap import missing_shards
from paramgolf.verify.text_checks import same_python

_XZ_TOLERANCE = 1e-3
"""Versions of liblzma compress slightly differently."""
_MAX_BIN_WIDTH_ERROR = 0.15
"""Between a bin width and the row scales over the standard deviations of the quantized rows."""


class Key(NamedTuple):
    """How the audit knows the value of a key."""

    kind: Kind
    basis: str
    """From what it is recomputed, or with what it must be consistent."""


def _recomputed(basis: str) -> Key:
    return Key("recomputed", basis)


def _self_reported(basis: str) -> Key:
    return Key("self-reported", basis)


_CONFIG = _recomputed("the configuration in train_gpt.py")
_ARTIFACT, _SIZES = _recomputed("model.bin"), _recomputed("sizes of the files")
_TEXT = _recomputed("the shards, and the originals that lie beside them")
_TOKENIZER, _SCORED = _recomputed("tokenizer.model"), _recomputed("scoring again")
_WEIGHTS = _recomputed("scoring the weights in checkpoints/, where they are kept")
_EVENTS = _self_reported("the events")
_CLOCK = _self_reported("the events' times; the speed of a few steps, on the same kind of device")

KEYS: dict[str, Key] = {
    "recipe": _self_reported("config.json"),
    "seed": _CONFIG,
    "corpus.source": _self_reported("config.json"),
    "corpus.sha256": _recomputed("the source, where it is at hand"),
    "corpus.tokenizer_sha256": _recomputed("tokenizer.model and model.bin"),
    "corpus.tokens.*": _recomputed("the shards"),
    "text.sha256": _TEXT,
    "text.bytes": _TEXT,
    "text.documents": _TEXT,
    "text.bytes_are": _self_reported("what prepared the text"),
    "tokenizer.sha256": _TOKENIZER,
    "tokenizer.bytes": _TOKENIZER,
    "tokenizer.pieces": _TOKENIZER,
    "tokenizer.claim": _recomputed("training it again, where its text is at hand; known hashes"),
    "tokenizer.origin": _self_reported("what prepared the text"),
    "tokenizer.origin.*": _self_reported("what prepared the text"),
    "tokenizer.restores": _recomputed("tokenizer.model and the text"),
    "tokenizer.long_piece_share": _recomputed("tokenizer.model and the shards"),
    "tokenizer.impossible_pairs": _recomputed("tokenizer.model and the shards"),
    "overlap.*.*": _recomputed("comparing the texts at hand"),
    "order": _SCORED,
    "num_ranks.*": _self_reported("the stage files"),
    "adapted_on": _CONFIG,
    "parameters": _ARTIFACT,
    "steps": _EVENTS,
    "stages.ema.*": _WEIGHTS,
    "stages.adapted.*": _WEIGHTS,
    "stages.quantized.*": _SCORED,
    "stages.sliding.*": _SCORED,
    "stages.score_first.*": _SCORED,
    "adaptation": _EVENTS,
    "adaptation.*.*": _EVENTS,
    "bytes.total": _SIZES,
    "bytes.budget": _CONFIG,
    "bytes.model": _SIZES,
    "bytes.code": _SIZES,
    "bytes.tokenizer": _SIZES,
    "bytes.by_part.*": _ARTIFACT,
    "artifact_sha256": _ARTIFACT,
    "raised_dampings": _self_reported("quantization.json and the events"),
    "raised_dampings.*": _self_reported("quantization.json and the events"),
    "seconds.*": _CLOCK,
    "budgets.*": _self_reported("the seconds"),
    "tokens_per_second.*": _CLOCK,
    "peak_gpu_bytes": _self_reported("environment.json"),
    "xz.*": _recomputed("compressing the text again"),
}
"""By key of results.json, where * stands for one name or number."""

SELF_REPORTED = [
    "that the weights come from this configuration, text and seed: `paramgolf verify` repeats the "
    "run",
    "which texts shaped the weights, and that the texts at hand are they",
    *(key for key, known in KEYS.items() if known.kind == "self-reported"),
]
"""What an audit cannot know: statements, and keys of results.json."""


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value in nested objects and lists with its path; empty ones as values."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from leaves(inner, (*path, str(name)))
    else:
        yield path, value


def key_of(path: tuple[str, ...]) -> Key | None:
    """Return what `KEYS` says of a path in results.json; None if it is not known."""
    for pattern, key in KEYS.items():
        names = pattern.split(".")
        if len(names) == len(path) and all(
            name in ("*", own) for name, own in zip(names, path, strict=True)
        ):
            return key
    return None


def recomputed(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Iterator[Check]:
    """Yield the checks of all that is derived without scoring."""
    return guarded(_recomputed_checks(run, config, results))


def _recomputed_checks(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Iterator[Check]:
    artifact = read(run.artifact)
    yield _configuration(run, config, artifact, results)
    yield _keys(config, results)
    sizes = _sizes(run, artifact, results)
    yield _compared("sizes recomputed", "bytes", sizes, results)
    total, budget = sizes["bytes.total"], config.pack.budget_bytes
    figure = f"{total:,} bytes on disk, budget {budget:,}"
    yield check("files within the byte budget", "bytes", total <= budget, figure)
    name, prepared = "text recomputed", PreparedText.of(run)
    try:
        tokenizer = Tokenizer.load(run.tokenizer)
        text = prepared.scored_text(run.data, tokenizer)
    except UserError as error:
        yield check(name, "provenance", False, str(error))
    else:
        derived = _text(run, config, artifact, tokenizer, prepared, text)
        found = _compared(name, "provenance", derived, results)
        gone = missing_shards(prepared, run.data)
        yield not_verified(found, gone[0]) if gone else found
        yield _xz(text, results)
    yield _corpus(run, config, results)
    yield _shards(run)
    yield _quantization(run, config, artifact)


def _configuration(
    run: RunDir, config: RunConfig, artifact: Artifact, results: dict[str, Any]
) -> Check:
    """Compare config.json with the configurations in the counted code and in the artifact."""
    name = "configuration is that of train_gpt.py"
    try:
        theirs = dict(leaves(configuration_in(run.code)))
    except UserError as error:
        return check(name, "code", False, str(error))
    ours = dict(leaves(portable(config)))
    wrong = [".".join(path) for path in sorted(ours | theirs) if ours.get(path) != theirs.get(path)]
    claimed = dict(leaves(results))
    derived: dict[tuple[str, ...], Any] = {
        ("seed",): config.seed,
        ("adapted_on",): config.adapt.text,
        ("corpus", "source"): str(Path(config.data.source)),
        ("bytes", "budget"): config.pack.budget_bytes,
    }
    wrong += [".".join(path) for path, value in derived.items() if claimed.get(path) != value]
    learning = config.score_first if config.score_first.learns else ScoreFirstConfig()
    packed = [
        ("model", artifact.model, config.model),
        ("score.stride", artifact.stride, config.score.stride),
        ("score_first", artifact.score_first, learning),
    ]
    wrong += [f"{key} in model.bin" for key, theirs, ours in packed if theirs != ours]
    figure = f"different: {', '.join(wrong)}" if wrong else "all but the paths and the device"
    return check(name, "code", not wrong, figure)


def _keys(config: RunConfig, results: dict[str, Any]) -> Check:
    """Check that results.json has the stages that the configuration leads to, and no other keys."""
    expected = {"ema"} | ({"adapted"} if config.adapt.text != "none" else set())
    expected |= {m.stage for m in score_modes(config.score.stride, config.score_first.learns)}
    found = set(results["stages"])
    wrong = [f"unknown stage {stage}" for stage in sorted(found - expected)]
    wrong += [f"no stage {stage}" for stage in sorted(expected - found)]
    wrong += [f"unknown {'.'.join(path)}" for path, _ in leaves(results) if not key_of(path)]
    figure = ", ".join(wrong) or f"{sum(1 for _ in leaves(results))} values"
    return check("keys and stages are known", "ledger", not wrong, figure)


def _compared(name: str, condition: str, derived: dict[str, Any], results: dict[str, Any]) -> Check:
    """Compare values by path with results.json, which must have them all."""
    claimed = {".".join(path): value for path, value in leaves(results)}
    wrong = [
        f"{path} is {value}, not {claimed.get(path, 'missing')}"
        for path, value in derived.items()
        if claimed.get(path) != value or type(claimed[path]) is not type(value)
    ]
    figure = "; ".join(wrong) or f"{len(derived)} values are equal"
    return check(name, condition, not wrong, figure)


def _sizes(run: RunDir, artifact: Artifact, results: dict[str, Any]) -> dict[str, Any]:
    content = run.artifact.read_bytes()
    code, tokenizer = run.code.stat().st_size, run.tokenizer.stat().st_size
    counted = tokenizer if results["tokenizer"]["claim"] == "given" else 0
    return {
        "bytes.total": len(content) + code + counted,
        "bytes.model": len(content),
        "bytes.code": code,
        "bytes.tokenizer": tokenizer,
        **{f"bytes.by_part.{name}": size for name, size in bytes_by_part(content).items()},
        "artifact_sha256": sha256_of_file(run.artifact),
        "parameters": sum(m.integers.numel() for m in artifact.matrices.values())
        + sum(vector.numel() for vector in artifact.vectors.values()),
    }


def _text(
    run: RunDir,
    config: RunConfig,
    artifact: Artifact,
    tokenizer: Tokenizer,
    prepared: PreparedText,
    text: Stream,
) -> dict[str, Any]:
    digest = tokenizer.sha256
    if artifact.tokenizer_sha256 != digest:
        digest = f"that of model.bin, {artifact.tokenizer_sha256}"
    tokens = {
        split: sum(len(open_shard(path)) for path in prepared.shards(split, run.data))
        for split in prepared.splits
        if all(path.exists() for path in prepared.shards(split, run.data))
    }
    modes = score_modes(config.score.stride, config.score_first.learns)
    adapted = ["adapted"] if config.adapt.text != "none" else []
    values: dict[str, Any] = {
        "corpus.tokenizer_sha256": digest,
        "tokenizer.sha256": digest,
        "tokenizer.bytes": run.tokenizer.stat().st_size,
        "tokenizer.pieces": tokenizer.vocab_size,
        "tokenizer.restores": text.restored(tokenizer),
        "tokenizer.long_piece_share": tokenizer.long_piece_bytes(text.tokens) / max(1, text.bytes),
        "tokenizer.impossible_pairs": tokenizer.impossible_pairs(text.tokens),
        "order": ORDER,
        "text.sha256": text.sha256,
        "text.bytes": text.bytes,
        "text.documents": len(text.texts),
        **{f"corpus.tokens.{split}": number for split, number in tokens.items()},
    }
    for stage in ("ema", *adapted, *(mode.stage for mode in modes)):
        values[f"stages.{stage}.tokens"] = len(text.tokens) - 1
        values[f"stages.{stage}.bytes"] = text.bytes
        values[f"stages.{stage}.bytes_are"] = text.bytes_are
    return values


def _corpus(run: RunDir, config: RunConfig, results: dict[str, Any]) -> Check:
    """Hash the source of the text again, if it is at hand."""
    name, condition = "corpus hashed again", "provenance"
    try:
        digest = _corpus_digest(run, config.data.source)
    except UserError as error:  # it is gone, or some of it, or damaged
        return Check(name, condition, "not applicable", str(error))
    claimed = results["corpus"]["sha256"]
    same = claimed == digest
    figure = f"SHA-256 {digest[:16]}" + ("" if same else f", reported {claimed[:16]}")
    return check(name, condition, same, figure)


def _corpus_digest(run: RunDir, source: str) -> str:
    if source == "stdlib":
        if not same_python(run):
            python = read_environment(run)["python"]
            raise UserError(f"it is the documentation of Python {python}")
        from paramgolf.data.corpus import stdlib_documents

        return text_digest(document.text for document in stdlib_documents()).hex()
    if not Path(source).is_dir():
        raise UserError(f"{source} is not at hand")
    if kind_of_text(source) == "shards":
        files = find_splits(Path(source))
        paths = [path for split in ("train", "val") for path in files[split]]
        return hashlib.sha256("".join(map(sha256_of_file, paths)).encode()).hexdigest()
    paths = [path for split in ("train", "val") for path in find_jsonl(Path(source), split)]
    return text_digest(d.text for path in paths for d in read_jsonl(path)).hex()


def _xz(text: Stream, results: dict[str, Any]) -> Check:
    size = len(lzma.compress("".join(text.texts).encode(), preset=9))
    claimed = results["xz"]["bytes"], results["xz"]["bpb"]
    good = all(
        isinstance(value, int | float) and abs(value - own) <= _XZ_TOLERANCE * own
        for value, own in zip(claimed, (size, 8 * size / max(1, text.bytes)), strict=True)
    )
    figure = f"{size:,} bytes, {claimed[0]:,} reported (tolerance {_XZ_TOLERANCE:.1%})"
    return check("xz compresses again", "bytes", good, figure)


def _shards(run: RunDir) -> Check:
    """Compare the SHA-256 of every shard with the one in the provenance."""
    name = "shards match the provenance"
    if not run.provenance.exists():
        return check(name, "provenance", False, "no provenance file")
    prepared = PreparedText.of(run)
    wrong, gone, count = [], [], 0
    for split, text in Provenance.load(run.provenance).texts.items():
        paths = prepared.shards(split, run.data)
        gone += [path for path in paths if not path.exists()]
        count += len(paths)
        known = zip(paths, text.shards, strict=False)
        same = (sha256_of_file(path) == digest for path, digest in known if path.exists())
        if len(paths) != len(text.shards) or not all(same):
            wrong.append(split)
    figure = f"different shards: {', '.join(wrong)}" if wrong else f"{count} shards, by SHA-256"
    found = check(name, "provenance", not wrong, figure)
    return not_verified(found, gone[0]) if gone else found


def _quantization(run: RunDir, config: RunConfig, artifact: Artifact) -> Check:
    """Recompute what quantization.json says of the integers and scales in the artifact."""
    name, condition = "quantization.json matches model.bin", "ledger"
    rows = read_quantization(run)
    if set(rows) != set(artifact.matrices):
        return check(name, condition, False, "it names other matrices")
    wrong: list[str] = []
    for matrix, quantized in artifact.matrices.items():
        row = rows[matrix]
        clipped, entropy, bin_width = _measured(quantized)
        same = (
            abs(row["clipped_share"] - clipped) <= 1e-9
            and abs(row["entropy_bits"] - entropy) <= 1e-9
            and (
                row["bin_width"] > 1
                or abs(row["bin_width"] / bin_width - 1) <= _MAX_BIN_WIDTH_ERROR
            )
            and row["damping"] >= config.pack.damping
        )
        if not same:
            wrong.append(matrix)
    figure = f"different: {', '.join(wrong)}" if wrong else f"{len(rows)} matrices"
    return check(name, condition, not wrong, figure)


def _measured(quantized: Quantized) -> tuple[float, float, float]:
    """Return the share of clipped integers, their entropy in bits, and the bin width.

    The bin width is that of the quantized rows: the row scale over the standard deviation.
    """
    integers = quantized.integers
    clipped = float((integers.abs() == MAX_INTEGER).double().mean())
    counts = torch.bincount(integers.flatten().long() + MAX_INTEGER).double()
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * shares.log2()).sum())
    deviations = integers.double().std(dim=1, correction=0)
    used = deviations > 0
    bin_width = float((-deviations[used].log()).mean().exp()) if bool(used.any()) else 1.0
    return clipped, entropy, bin_width
