"""Claims beside what is found, and those of a submission folder, which need no rerun."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any, Literal, NamedTuple

from paramgolf.errors import UserError
from paramgolf.runtime.files import sha256_of_file
from paramgolf.runtime.schema import POSITIVE, read_record

Agreement = Literal["yes", "NO", "shown", "not judged"]

_ADVICE = "restore it, or make the submission again"
_SUMMARY = {
    "model_of_seed": int,
    "stage": str,
    "seeds": {str: {"val_bpb": POSITIVE}},
    "val_bpb": POSITIVE,
    "requested_seeds": ([int], None),
    "complete": bool,
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


def submitted_files(folder: Path) -> list[Fact]:
    """Compare the files of a submission with the hashes in its audits, and its mean with both.

    Raises:
        UserError: if a file is missing or is not what a submission contains.
    """
    summary = read_record(folder / "submission.json", _SUMMARY, _ADVICE)
    if odd := [seed for seed in summary["seeds"] if not _SEED.fullmatch(seed)]:
        raise UserError(f"{folder / 'submission.json'}: {odd[0]!r} is no seed: {_ADVICE}")
    facts, bpb = [], []
    for seed, entry in summary["seeds"].items():
        record = folder / "results" / f"audit-seed-{seed}.json"
        files = read_record(record, {"files": {str: str}}, _ADVICE)["files"]
        results = folder / "results" / f"seed-{seed}.json"
        places = {"results.json": [results]}
        if seed == str(summary["model_of_seed"]):
            places["results.json"].append(folder / "results.json")
            places |= {name: [folder / name] for name in _COPIES}
        wrong = [
            str(path.relative_to(folder))
            for name, paths in places.items()
            for path in paths
            if not path.is_file() or sha256_of_file(path) != files.get(name)
        ]
        found = f"not: {', '.join(wrong)}" if wrong else "they are"
        facts.append(Fact(f"files, seed {seed}", "those audited", found, "NO" if wrong else "yes"))
        schema = {"stages": {summary["stage"]: {"bpb": POSITIVE}}}
        bpb.append(read_record(results, schema, _ADVICE)["stages"][summary["stage"]]["bpb"])
        facts.append(equal(f"BPB, seed {seed}", entry["val_bpb"], bpb[-1]))
    mean = statistics.fmean(bpb) if bpb else None
    facts.append(equal("BPB, mean of seeds", summary["val_bpb"], mean))
    missing = set(summary["requested_seeds"] or ()) - set(map(int, summary["seeds"]))
    said = f"complete: {summary['complete']}"
    found = f"missing: {', '.join(map(str, sorted(missing)))}" if missing else "none missing"
    agrees: Agreement = "yes" if summary["complete"] == (not missing) else "NO"
    return [*facts, Fact("seeds", said, found, agrees)]
