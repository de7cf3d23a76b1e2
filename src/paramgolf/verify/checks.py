"""What one check says, and whether a stored audit still applies to its run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from paramgolf.errors import UserError
from paramgolf.runtime.files import read_json, sha256_of_file

AUDIT_NAME = "audit.json"

Outcome = Literal["pass", "FAIL", "not verified", "not applicable"]
"""Not verified: what it would be recomputed from is gone, and what is left shows nothing wrong."""
Kind = Literal["recomputed", "self-reported"]
"""Recomputed from artifact, code, tokenizer and text; or compared only with other claims of the
run, which whoever made the run wrote."""

_MAX_SUM_ERROR = 1e-9  # relative, of the same sum of float64 in another order
_AUDITED = (
    "model.bin",
    "train_gpt.py",
    "tokenizer.model",
    "provenance.safetensors",
    "documents.safetensors",
    "config.json",
    "results.json",
    "quantization.json",
    "events.jsonl",
    "environment.json",
)


class Check(NamedTuple):
    """The result of one check."""

    name: str
    condition: str
    """The rule that it belongs to: "1 causal", "2 normalised", "3 score before update",
    "4 one pass", "code", "provenance", "bytes", "seconds" or "ledger" (docs/rules.md)."""
    outcome: Outcome
    figure: str
    """What was measured, with its limit."""
    kind: Kind = "recomputed"


def check(name: str, condition: str, passed: bool, figure: str, kind: Kind = "recomputed") -> Check:
    """Return a check that passed or failed.

    A measured number belongs into `at_most`, which no NaN passes.
    """
    # A figure may quote a hostile file.
    shown = "".join(c if c.isprintable() else " " for c in figure)
    return Check(name, condition, "pass" if passed else "FAIL", shown, kind)


def at_most(
    name: str,
    condition: str,
    measured: float,
    limit: float,
    figure: str,
    kind: Kind = "recomputed",
) -> Check:
    """Return a check that passes if a measured number is finite and at most `limit`."""
    passed = math.isfinite(measured) and measured <= limit
    return check(name, condition, passed, figure, kind)


def not_verified(found: Check, gone: Path) -> Check:
    """Return a check whose outcome rests on what the run says alone, since a file is gone."""
    outcome = "not verified" if found.outcome == "pass" else found.outcome
    figure = f"{found.figure}; not recomputed, as {gone} is gone"
    return found._replace(outcome=outcome, figure=figure, kind="self-reported")


def guarded(checks: Iterator[Check]) -> Iterator[Check]:
    """Yield checks; if a record that they read lacks an entry or has a wrong one, they fail."""
    try:
        yield from checks
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        figure = f"an entry is missing or damaged: {type(error).__name__} {error}"
        yield check("records are complete", "ledger", False, figure)


def other_sums(score: dict[str, Any], nats: float) -> list[str]:
    """Return which of "bpb" and "loss_nats" of a score in results.json do not follow from a loss.

    Args:
        score: an entry of `stages`.
        nats: the loss of all documents together.
    """
    implied = {
        "bpb": score["bpb"] * score["bytes"] * math.log(2),
        "loss_nats": score["loss_nats"] * score["tokens"],
    }
    return [k for k, v in implied.items() if not math.isclose(v, nats, rel_tol=_MAX_SUM_ERROR)]


def audited_files(run: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that a verdict is about, by its name in the run's folder."""
    paths = [run / name for name in _AUDITED] + sorted((run / "stages").glob("*.json"))
    return {
        path.relative_to(run).as_posix(): sha256_of_file(path) for path in paths if path.is_file()
    }


def audit_is_current(run: Path) -> bool:
    """Return whether the run's audit.json exists and is about the files as they are now.

    It says nothing about who wrote audit.json: only another audit does.
    """
    try:
        audit = read_json(run / AUDIT_NAME)
        return isinstance(audit, dict) and audit.get("files") == audited_files(run)
    except (OSError, UserError):
        return False
