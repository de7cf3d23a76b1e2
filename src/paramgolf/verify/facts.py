"""Claims beside what is found, and those of a submission folder, which need no rerun."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from paramgolf.errors import UserError
from paramgolf.runtime.files import sha256_of_file
from paramgolf.runtime.records import audit_in, read_environment, results_in
from paramgolf.runtime.rundir import RunDir
from paramgolf.runtime.schema import POSITIVE, read_record
from paramgolf.verify.summary import Record, machine, summary

Agreement = Literal["yes", "NO", "shown", "not judged"]

_ADVICE = "restore it, or make the submission again"
_SAID = {
    "model_of_seed": int,
    "seeds": {str: {"val_bpb": POSITIVE}},
    "requested_seeds": ([int], None),
    "complete": bool,
    "compliant": bool,
}
_COPIES = (
    "model.bin",
    "train_gpt.py",
    "tokenizer.model",
    "environment.json",
    "provenance.safetensors",
)
"""Files of the run whose model is submitted."""
_SEED = re.compile(r"\d{1,19}")


class Fact(NamedTuple):
    """One claim beside what the rerun, or the folder itself, says."""

    name: str
    claimed: str
    found: str
    agrees: Agreement
    """"shown": not comparable here, such as the seconds of other hardware. "not judged" is never
    compared."""


def equal(name: str, claimed: Any, found: Any) -> Fact:
    """Return a fact that agrees if both values are equal; of hashes, the beginning is shown."""
    texts = [str(value)[:16] if value is not None else "none" for value in (claimed, found)]
    return Fact(name, texts[0], texts[1], "yes" if claimed == found else "NO")


def submitted(folder: Path) -> tuple[list[Fact], bool]:
    """Compare the files of a submission with its audits' hashes, and its summary with both.

    Returns:
        The facts, and whether the submission claims that all of its runs are compliant.

    Raises:
        UserError: if a file is missing or is not what a submission contains.
    """
    said = read_record(folder / "submission.json", _SAID, _ADVICE)
    if odd := [seed for seed in said["seeds"] if not _SEED.fullmatch(seed)]:
        raise UserError(f"{folder / 'submission.json'}: {odd[0]!r} is no seed: {_ADVICE}")
    facts, records = [], {}
    for seed in map(int, said["seeds"]):
        path = folder / "results" / f"seed-{seed}.json"
        audit = audit_in(folder / "results" / f"audit-seed-{seed}.json", _ADVICE)
        records[seed] = Record(results_in(path, _ADVICE), audit)
        places = {"results.json": [path]}
        if seed == said["model_of_seed"]:
            places["results.json"].append(folder / "results.json")
            places |= {name: [folder / name] for name in _COPIES}
        wrong = [
            str(path.relative_to(folder))
            for name, paths in places.items()
            for path in paths
            if not path.is_file() or sha256_of_file(path) != audit["files"].get(name)
        ]
        found = f"not: {', '.join(wrong)}" if wrong else "they are"
        facts.append(Fact(f"files, seed {seed}", "those audited", found, "NO" if wrong else "yes"))
    if not records:
        raise UserError(f"{folder / 'submission.json'} names no seed: {_ADVICE}")
    environment = read_environment(RunDir(folder))
    facts += _summary_facts(said, summary(records) | machine(environment))
    asked_for = {*(said["requested_seeds"] or ()), *environment.get("requested_seeds", ())}
    missing = asked_for - records.keys()
    found = f"missing: {', '.join(map(str, sorted(missing)))}" if missing else "none missing"
    agrees: Agreement = "yes" if said["complete"] == (not missing) else "NO"
    facts.append(Fact("seeds", f"complete: {said['complete']}", found, agrees))
    return facts, said["compliant"]


def _summary_facts(said: dict[str, Any], derived: dict[str, Any]) -> list[Fact]:
    """Compare submission.json with what follows from its results, audits and environment."""
    facts = []
    for key in ("compliant", "label", "val_bpb", "val_bpb_std", "bytes_total"):
        facts.append(equal(f"submission: {key}", said.get(key), derived[key]))
    rest = [key for key in derived if said.get(key) != derived[key]]
    found = f"not: {', '.join(rest)}" if rest else "they are"
    name, claimed = "submission: all entries", "those of the runs"
    return [*facts, Fact(name, claimed, found, "NO" if rest else "yes")]
