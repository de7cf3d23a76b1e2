"""What submission.json says of runs, derived from their results and audits alone.

`paramgolf submission` writes it, and `paramgolf verify` derives it again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from paramgolf.scoring.bits_per_byte import label_of


class Record(NamedTuple):
    """One seed's run."""

    results: dict[str, Any]
    """Contents of results.json."""
    audit: dict[str, Any]
    """Contents of audit.json."""

    @property
    def final(self) -> dict[str, Any]:
        """The last score."""
        return list(self.results["stages"].values())[-1]

    @property
    def label(self) -> str:
        """Of the last score."""
        return label_of(self.results, list(self.results["stages"])[-1])


def median_seed(bpb: Mapping[int, float]) -> int:
    """Return the seed with the median score; of two in the middle, the one with the lower BPB."""
    return sorted(bpb, key=lambda seed: bpb[seed])[(len(bpb) - 1) // 2]


def passes(audit: dict[str, Any]) -> bool:
    """Return whether an audit passes by its checks, whatever it says in one word."""
    outcomes = [check["outcome"] for check in audit["checks"]]
    return "pass" in outcomes and set(outcomes) <= {"pass", "not applicable"}


def summary(records: Mapping[int, Record]) -> dict[str, Any]:
    """Return the entries of submission.json that follow from the runs, by seed, and their audits.

    Args:
        records: of every finished run, all of one text and one configuration.
    """
    bpb = {seed: record.final["bpb"] for seed, record in records.items()}
    chosen = median_seed(bpb)
    results, final = records[chosen].results, records[chosen].final
    return {
        "compliant": all(passes(record.audit) for record in records.values()),
        "label": records[chosen].label,
        "verdict": _verdict(records),
        "val_bpb": statistics.fmean(bpb.values()),
        "val_loss": statistics.fmean(record.final["loss_nats"] for record in records.values()),
        "val_bpb_std": statistics.stdev(bpb.values()) if len(bpb) > 1 else None,
        "stage": list(results["stages"])[-1],
        "bytes_total": results["bytes"]["total"],
        "bytes_code": results["bytes"]["code"],
        "bytes_model": results["bytes"]["model"],
        "model_of_seed": chosen,
        "seeds": {str(seed): _of_seed(record) for seed, record in records.items()},
        "recipe": results["recipe"],
        "text_sha256": results["text"]["sha256"],
        "text_restored_as": results["tokenizer"]["restores"],
        "text_bytes": final["bytes"],
        "tokens": final["tokens"],
        "num_ranks": results["num_ranks"],
    }


def machine(environment: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of submission.json that follow from the chosen run's environment.json."""
    hardware, versions = (
        ("platform", "gpu", "cpu_threads"),
        ("paramgolf", "python", "packages", "cuda"),
    )
    return {
        "hardware": {key: environment[key] for key in hardware},
        "versions": {key: environment[key] for key in versions},
    }


def _of_seed(record: Record) -> dict[str, Any]:
    results = record.results
    return {
        "val_bpb": record.final["bpb"],
        "val_loss": record.final["loss_nats"],
        "label": record.label,
        "bytes_total": results["bytes"]["total"],
        "steps": results["steps"],
        "training_seconds": results["budgets"]["training"],
        "evaluation_seconds": results["budgets"]["evaluation"],
        "audit_passed": passes(record.audit),
        "artifact_sha256": results["artifact_sha256"],
    }


def _verdict(records: Mapping[int, Record]) -> str:
    """Return the audits' verdict in one line; if some do not pass, conditions and seeds."""
    others = {seed: record.audit for seed, record in records.items() if not passes(record.audit)}
    if not others:
        first = " ".join(next(iter(records.values())).audit["verdict"][0].split())
        return first.removeprefix("verdict ")
    seeds = ", ".join(map(str, others))
    conditions = sorted({name for audit in others.values() for name in audit["failed"]})
    if conditions:
        return f"NOT compliant: {', '.join(conditions)} (seeds {seeds})"
    names = sorted({name for audit in others.values() for name in audit["unverified"]})
    return f"compliance not verified: {', '.join(names)} (seeds {seeds})"
