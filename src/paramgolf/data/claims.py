"""Where a tokenizer comes from, and whether its bytes therefore count in the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paramgolf.data.manifest import built_by_us
from paramgolf.data.provenance import Provenance
from paramgolf.data.tokenizer import Tokenizer
from paramgolf.runtime.files import read_key

KNOWN = {
    "3faad76fc36c62196cb4bd3ea37a94b7a3b42f1324f66153fed85528b06635b6": "sp8192 of the bench h200"
}
"""Tokenizers that everyone has, by SHA-256."""


def tokenizer_claim(
    tokenizer: Tokenizer, file: Path | None, train_sha256: str | None
) -> dict[str, Any]:
    """Return what a run claims of its tokenizer: an entry of its results.

    Args:
        tokenizer: the tokenizer.
        file: where it was read; None: it was trained on the run's whole training text just now.
        train_sha256: the hash that names the run's training text; None: not known yet.

    Returns:
        "sha256", "bytes", "pieces"; "claim": "trained" on the run's own training text, "known" to
        everyone, or "given", whose bytes count in the budget; and "origin": of a trained one
        "case_ops", and how many "documents" with the smallest hashes it was trained on (None: all,
        in their order); of one that `data fetch` fetched, "repo", "revision" and "dataset", as its
        source.json says; else None.
    """
    claim, origin = _origin(tokenizer, file, train_sha256)
    return {
        "sha256": tokenizer.sha256,
        "bytes": len(tokenizer.model),
        "pieces": tokenizer.vocab_size,
        "claim": claim,
        "origin": origin,
    }


def described(claim: dict[str, Any]) -> str:
    """Return in words where a tokenizer comes from."""
    origin = claim["origin"] or {}
    if claim["claim"] == "trained":
        count = origin.get("documents")
        part = "" if count is None else f"{count:,} documents of "
        return f"trained on {part}the run's own training text"
    if claim["claim"] == "given":
        return "given: its training text is not known"
    if is_self_reported(claim):
        return f"fetched from {origin.get('repo')} (self-reported)"
    return f"known: {KNOWN[claim['sha256']]}"


def is_self_reported(claim: dict[str, Any]) -> bool:
    """Return whether a tokenizer is not counted because of what a source.json says alone."""
    return claim["claim"] == "known" and claim["sha256"] not in KNOWN


def shown_form(claim: dict[str, Any]) -> str:
    """Return what follows a label where the tokenizer does not restore the original text."""
    return "" if claim["restores"] == "original" else f", restored as {claim['restores']}"


def counted_bytes(claim: dict[str, Any]) -> int:
    """Return how many bytes of the budget a tokenizer takes."""
    return claim["bytes"] if claim["claim"] == "given" else 0


def _origin(
    tokenizer: Tokenizer, file: Path | None, train_sha256: str | None
) -> tuple[str, dict[str, Any] | None]:
    sha256 = tokenizer.sha256
    if file is None:
        training = {"case_ops": tokenizer.case_ops, "documents": None}
        return "trained", training
    if sha256 in KNOWN:
        return "known", None
    built = built_by_us(file.parent)
    if built is not None and built["tokenizer"]["sha256"] == sha256:
        trained_on = built["tokenizer"].get("trained_on")
        same = train_sha256 in (None, built["splits"]["train"]["text_sha256"])
        if trained_on is not None and same:
            training = {"case_ops": tokenizer.case_ops, "documents": trained_on["documents"]}
            return "trained", training
    earlier = _of_earlier_run(file, train_sha256)
    if earlier is not None and earlier.get("sha256") == sha256:
        claim, origin = earlier.get("claim"), earlier.get("origin")
        if claim == "given" or (claim in ("known", "trained") and isinstance(origin, dict)):
            return claim, origin
    fetched = file.with_name("source.json")
    if fetched.exists() and read_key(fetched, "files", file.name, "sha256") == sha256:
        origin = {key: read_key(fetched, key) for key in ("repo", "revision", "dataset")}
        return "known", origin
    return "given", None


def _of_earlier_run(file: Path, train_sha256: str | None) -> dict[str, Any] | None:
    """Return the claim of the run, or bundle, whose tokenizer this is, if its text is the same.

    Repeating that run then repeats its provenance, and with it the artifact.
    """
    results = file.with_name("results.json")
    provenance = file.with_name("provenance.safetensors")
    if not results.exists() or not provenance.exists():
        return None
    train = Provenance.load(provenance).texts.get("train")
    if train is None or train_sha256 not in (None, train.sha256):
        return None
    found = read_key(results, "tokenizer")
    return found if isinstance(found, dict) else None
