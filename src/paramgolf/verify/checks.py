"""What one check says, and whether a stored audit still applies to its run."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Outcome = Literal["pass", "FAIL", "not applicable"]


class Check(NamedTuple):
    """The result of one check."""

    name: str
    condition: str
    """The rule that it belongs to: "1 causal", "2 normalised", "3 score before update",
    "4 one pass", "provenance", "bytes", "seconds" or "ledger" (docs/rules.md)."""
    outcome: Outcome
    figure: str
    """What was measured, with its limit."""


def check(name: str, condition: str, passed: bool, figure: str) -> Check:
    """Return a check that passed or failed."""
    return Check(name, condition, "pass" if passed else "FAIL", figure)


def audit_is_current(audit: dict[str, Any], results: dict[str, Any]) -> bool:
    """Return whether audit.json is about the artifact and the scores in results.json."""
    return audit.get("artifact_sha256") == results["artifact_sha256"] and all(
        results["stages"].get(stage, {}).get(key) == value
        for stage, score in audit["scores"].items()
        for key, value in score.items()
    )
