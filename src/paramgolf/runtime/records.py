"""Readers of the JSON files of a finished run: what they return has every key that is used.

docs/results.md documents the keys. Other keys are not checked here: the audit refuses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paramgolf.runtime.ledger import PHASES
from paramgolf.runtime.rundir import RunDir
from paramgolf.runtime.schema import COUNT, POSITIVE, TIME, read_record, require_schema

_PHASES = frozenset(PHASES)
_SPLIT_NAMES = frozenset(("train", "val", "adapt"))
_LABEL = frozenset(("held-out", "in-sample", "unverified", "score-first"))
_BYTES_ARE = frozenset(("original", "as decoded"))
_SCORE: dict[str, Any] = {
    "loss_nats": POSITIVE,
    "bpb": POSITIVE,
    "tokens": COUNT,
    "bytes": COUNT,
    "label": _LABEL,
    "bytes_are": _BYTES_ARE,
    "overlap_share": (float, None),
    "seen_documents": int,
    "documents": int,
    "seen_bytes": int,
}
_SCORED_STAGES = ("ema", "adapted", "quantized", "sliding", "score_first")
_SCORES = {frozenset(_SCORED_STAGES): _SCORE}
_EPOCHS = [{"epoch": COUNT, "train_loss_nats": POSITIVE, "bpb?": POSITIVE, "label?": _LABEL}]
_BYTES = {
    "total": COUNT,
    "budget": COUNT,
    "model": COUNT,
    "code": COUNT,
    "tokenizer": COUNT,
    "by_part": {
        part: int for part in ("embedding", "query", "key", "value", "output", "up", "down", str)
    },
}
_SPLIT = {
    "shards": [str, 1],
    "tokens": COUNT,
    "documents": int,
    "text_sha256": str,
    "bytes": int,
    "bytes_are": _BYTES_ARE,
}
_TOKENIZER = {
    "sha256": str,
    "bytes": COUNT,
    "pieces": COUNT,
    "claim": frozenset(("trained", "known", "given")),
    "origin": ({}, None),
    "restores": str,
}
_OVERLAP = dict.fromkeys(
    ("documents", "seen_documents", "bytes", "seen_bytes", "runs", "seen_runs", "unjudged_bytes"),
    int,
)
_OVERLAPS = {"train": _OVERLAP, "train+adapt?": _OVERLAP}
_ANY_STAGE = {
    "num_ranks?": COUNT,
    "seconds": {_PHASES: float},
    "scores?": _SCORES,
    "tokens_per_second?": {str: (float, None)},
    "taken_from?": str,
}
_STAGES: dict[str, dict[str, Any]] = {
    "prepare": {
        "text": {
            "source": str,
            "corpus_sha256": str,
            "tokenizer_sha256": str,
            "splits": {"train": _SPLIT, "val": _SPLIT, _SPLIT_NAMES: _SPLIT},
        },
        "tokenizer": _TOKENIZER,
        "overlap": _OVERLAPS,
    },
    "train": {
        "parameters": COUNT,
        "steps": int,
        "tokens_per_second": {"train": (float, None), str: (float, None)},
        "peak_gpu_bytes": (int, None),
        "scores": {"ema": _SCORE} | _SCORES,
    },
    "adapt": {"epochs": _EPOCHS},
    "pack": {"bytes": _BYTES, "artifact_sha256": str, "raised_dampings": {str: float}},
    "score": {
        "xz": {"bytes": int, "bpb": float},
        "scores": {"quantized": _SCORE, "sliding": _SCORE} | _SCORES,
    },
}
_STAGES = {name: _ANY_STAGE | own for name, own in _STAGES.items()}
_EVENT = {"time": TIME, "event": str}
_EVENTS: dict[str, dict[str, Any]] = {
    "stage_started": {"stage": str},
    "training_resumed": {"step": int},
    "train": {
        "step": int,
        "elapsed_seconds": float,
        "loss_nats": POSITIVE,
        "lr_factor": float,
        "recurrent": bool,
    },
}
_RESULTS = {
    "recipe": str,
    "seed": int,
    "corpus": {
        "source": str,
        "sha256": str,
        "tokenizer_sha256": str,
        "tokens": {_SPLIT_NAMES: int},
    },
    "text": {"sha256": str, "bytes": COUNT, "documents": int, "bytes_are": _BYTES_ARE},
    "tokenizer": _TOKENIZER,
    "overlap": _OVERLAPS,
    "order?": str,
    "num_ranks": {"train": int, str: int},
    "adapted_on": frozenset(("none", "adapt", "scored")),
    "parameters": int,
    "steps": int,
    "stages": {"ema": _SCORE, "quantized": _SCORE, "sliding": _SCORE} | _SCORES,
    "adaptation": _EPOCHS,
    "bytes": _BYTES,
    "artifact_sha256": str,
    "raised_dampings": {str: float},
    "seconds": {_PHASES: float},
    "budgets": {"training": float, "evaluation": float, "none": float},
    "tokens_per_second": {str: (float, None)},
    "peak_gpu_bytes": (int, None),
    "xz": {"bytes": int, "bpb": float},
}
_ENVIRONMENT = {
    "requested_seeds?": [int],
    "paramgolf": str,
    "python": str,
    "platform": str,
    "packages": {str: str},
    "cuda": (str, None),
    "gpu": (str, None),
    "cpu_threads": int,
}
_AUDIT = {
    "passed": bool,
    "failed": [str],
    "unverified": [str],
    "verdict": [str, 1],
    "files": {str: str},
    "checks": [{key: str for key in ("name", "condition", "outcome", "figure")}],
}
_MATRIX = {
    key: float
    for key in (
        "bin_width",
        "gptq_error",
        "nearest_error",
        "clipped_share",
        "entropy_bits",
        "damping",
    )
}
_MATRIX_ROLES = ("query", "key", "value", "output", "up", "down")


def require_records(run: RunDir) -> None:
    """Check the result of every finished stage, and the events.

    Raises:
        UserError: naming the first key that is missing or wrong.
    """
    for stage, schema in _STAGES.items():
        path = run.stage_file(stage)
        if path.exists():
            advice = f"restore it, or remove it and `paramgolf run --resume {run.path}`"
            read_record(path, schema, advice)
    read_events(run)


def read_events(run: RunDir) -> list[dict[str, Any]]:
    """Return what `RunDir.read_events` does, checked.

    Raises:
        UserError: naming the first key that is missing or wrong.
    """
    events = run.read_events()
    for number, event in enumerate(events, start=1):
        name, advice = f"{run.events_file}, line {number}", "restore it, or remove this line"
        require_schema(event, _EVENT, name, advice)
        require_schema(event, _EVENTS.get(event["event"], {}), name, advice)
    return events


def read_results(run: RunDir) -> dict[str, Any]:
    """Return the content of results.json, its stages in the order of the pipeline.

    The last one is the final score, whatever the order in the file.

    Raises:
        UserError: if it cannot be read, or naming the first key that is missing or wrong.
    """
    return results_in(
        run.results_file, f"restore it, or remove it and `paramgolf run --resume {run.path}`"
    )


def results_in(path: Path, advice: str) -> dict[str, Any]:
    """Read what `read_results` does from a file of another name; `advice` ends the error."""
    results = read_record(path, _RESULTS, advice)
    scores = results["stages"]
    results["stages"] = {name: scores[name] for name in _SCORED_STAGES if name in scores}
    return results


def read_environment(run: RunDir) -> dict[str, Any]:
    """Return the content of environment.json; raises like `read_results`."""
    return read_record(run.path / "environment.json", _ENVIRONMENT, "restore it")


def read_quantization(run: RunDir) -> dict[str, dict[str, float]]:
    """Return the content of quantization.json; raises like `read_results`."""
    num_layers = RunDir.open(run.path)[2].model.num_layers
    names = ["embedding"]
    names += [f"blocks.{layer}.{role}" for layer in range(num_layers) for role in _MATRIX_ROLES]
    schema = {name: _MATRIX for name in names} | {frozenset(names): _MATRIX}
    advice = (
        f"restore it, or remove {run.stage_file('pack')} and `paramgolf run --resume {run.path}`"
    )
    return read_record(run.quantization_file, schema, advice)


def read_audit(run: RunDir) -> dict[str, Any]:
    """Return the content of audit.json; raises like `read_results`."""
    return audit_in(run.path / "audit.json", f"write it again with `paramgolf audit {run.path}`")


def audit_in(path: Path, advice: str) -> dict[str, Any]:
    """Read what `read_audit` does from a file of another name; `advice` ends the error."""
    return read_record(path, _AUDIT, advice)
