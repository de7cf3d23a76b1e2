"""Write the files of finished runs: nothing is trained, and every figure is made up."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paramgolf.checked import to_json
from paramgolf.config import RunConfig
from paramgolf.model.roles import MATRIX_NAMES
from paramgolf.recipes import RECIPES
from paramgolf.runtime.files import write_json, write_tensors
from paramgolf.verify.checks import audited_files

Array = NDArray[np.float64]

BYTES_D = np.array([300.0, 500.0, 200.0, 400.0, 350.0, 250.0])
NATS_D = np.array([610.0, 900.0, 440.0, 830.0, 660.0, 530.0])
TOKENS = 700
TINY = RECIPES["tiny"][1]


_SPLIT = {
    "shards": ["text_000000.bin"], "tokens": 9, "documents": 1, "text_sha256": "7e", "bytes": 30,
    "bytes_are": "original",
}  # fmt: skip
_TOKENIZER = {
    "sha256": "t0", "bytes": 6, "pieces": 2048, "claim": "trained",
    "origin": None, "restores": "original", "long_piece_share": 0.0, "impossible_pairs": 0,
}  # fmt: skip
_SCORE = {
    "loss_nats": 2.0, "bpb": 1.0, "tokens": 9, "bytes": 30, "label": "held-out",
    "bytes_are": "original", "overlap_share": 0.0, "seen_documents": 0, "documents": 1,
    "seen_bytes": 0,
}  # fmt: skip
OVERLAP = {
    "documents": 6, "seen_documents": 0, "bytes": 99, "seen_bytes": 0, "runs": 80, "seen_runs": 1,
    "unjudged_bytes": 0,
}  # fmt: skip
STAGE_RESULTS: dict[str, dict[str, Any]] = {
    "prepare": {
        "text": {
            "source": "stdlib", "corpus_sha256": "c0ffee", "tokenizer_sha256": "7ea",
            "splits": {"train": _SPLIT, "val": _SPLIT},
        },
        "tokenizer": _TOKENIZER,
        "overlap": {"train": OVERLAP},
        "seconds": {},
    },
    "train": {
        "scores": {"ema": _SCORE}, "parameters": 12345, "steps": 600, "seconds": {},
        "tokens_per_second": {"train": 5000.0}, "peak_gpu_bytes": None,
    },
    "adapt": {"epochs": [], "seconds": {}},
}  # fmt: skip
"""The first stages' results, as small as possible."""


def write_run(
    path: Path,
    seed: int = 1,
    nats_D: Array = NATS_D,
    bytes_D: Array = BYTES_D,
    tokens: int = TOKENS,
    label: str = "held-out",
    text: str = "the text",
    config: RunConfig = TINY,
    stages: tuple[str, ...] = ("ema", "quantized", "sliding"),
    restores: str = "original",
) -> Path:
    """Write the files of a run that `seeds`, `compare`, `ablate` and `submission` read.

    Every stage except "ema" has these losses; "ema" is one bit per byte worse and has no losses by
    document.
    """
    path.mkdir(parents=True)
    nats, size = float(nats_D.sum()), int(bytes_D.sum())
    scores: dict[str, Any] = {}
    for stage in stages:
        total = nats + (size * math.log(2) if stage == "ema" else 0.0)
        scores[stage] = {
            "loss_nats": total / tokens,
            "bpb": total / math.log(2) / size,
            "tokens": tokens,
            "bytes": size,
            "bytes_are": "original",
            "label": label,
            "overlap_share": 0.0,
            "seen_documents": 0,
            "documents": len(bytes_D),
            "seen_bytes": 0,
        }
    packed = {stage: torch.tensor(nats_D) for stage in stages if stage != "ema"}
    write_tensors(
        path / "documents.safetensors",
        {"bytes": torch.from_numpy(bytes_D).long(), **packed},
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
    config = dataclasses.replace(config, seed=seed)
    write_json(path / "config.json", {"recipe": "tiny", **to_json(config)})
    sizes = {
        "total": 1004 + seed, "model": 1000 + seed, "code": 4, "tokenizer": 6, "budget": 650_000,
        "by_part": dict.fromkeys(("embedding", *MATRIX_NAMES), 10),
    }  # fmt: skip
    xz, packed_scores = {"bytes": 900, "bpb": 3.5}, {k: v for k, v in scores.items() if k != "ema"}
    write_json(path / "stages" / "score.json", {"scores": packed_scores, "seconds": {}, "xz": xz})
    write_json(
        path / "stages" / "pack.json",
        {
            "bytes": sizes,
            "artifact_sha256": f"of seed {seed}",
            "raised_dampings": {},
            "seconds": {},
        },
    )
    contents = {
        "model.bin": bytes(1000 + seed), "train_gpt.py": b"code", "tokenizer.model": b"pieces",
        "provenance.safetensors": b"hashes",
    }  # fmt: skip
    for name, content in contents.items():
        (path / name).write_bytes(content)
    write_json(
        path / "environment.json",
        {
            "paramgolf": "0.1", "python": "3.11.7", "platform": "a platform", "cuda": None,
            "packages": {"torch": "2.13.0"}, "gpu": None, "cpu_threads": 1,
        },
    )  # fmt: skip
    write_json(
        path / "results.json",
        {
            "recipe": "tiny", "seed": seed, "parameters": 12345, "steps": 600,
            "num_ranks": {"train": 1}, "adapted_on": "adapt", "stages": scores,
            "text": {
                "sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": size,
                "documents": len(bytes_D), "bytes_are": "original",
            },
            "tokenizer": {**_TOKENIZER, "restores": restores},
            "overlap": {"train": OVERLAP},
            "corpus": {
                "source": "stdlib", "sha256": "c0ffee", "tokenizer_sha256": "7ea",
                "tokens": {"train": 9},
            },
            "bytes": sizes, "adaptation": [], "raised_dampings": {}, "peak_gpu_bytes": None,
            "tokens_per_second": {"train": 5000.0}, "xz": xz,
            "artifact_sha256": f"of seed {seed}",
            "seconds": {"train: steps": 10.0 + seed, "pack: GPTQ": 1.0},
            "budgets": {"training": 11.0 + seed, "evaluation": 0.0, "none": 0.0},
        },
    )  # fmt: skip
    events = [
        {
            "time": 86400.0 * 365 + seed,
            "event": "train",
            "step": 50,
            "loss_nats": 3.25,
            "elapsed_seconds": 9.5,
            "lr_factor": 1.0,
            "recurrent": False,
        },
        {"time": 86400.0 * 366 + seed, "event": "stage_finished", "stage": "score"},
    ]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def write_seeds(folder: Path, nats: dict[int, Array], **options: Any) -> Path:
    """Write a folder of seeds whose runs have these losses by document."""
    for seed, nats_D in nats.items():
        write_run(folder / f"seed-{seed}", seed, nats_D, **options)
    entries = [{"seed": seed, "failure": ""} for seed in nats]
    write_json(folder / "seeds.json", {"runs": entries})
    return folder


def write_audit(path: Path, failed: tuple[str, ...] = ()) -> None:
    """Write the audit.json of a written run."""
    stages = json.loads((path / "results.json").read_text())["stages"]
    outcome = "NOT compliant: " + ", ".join(failed) if failed else "compliant as fixed predictor"
    write_json(
        path / "audit.json",
        {
            "passed": not failed,
            "failed": list(failed),
            "unverified": [],
            "verdict": [f"verdict        {outcome}", "               self-reported"],
            "files": audited_files(path),
            "seed": 1,
            "scores": {
                name: {"bpb": score["bpb"], "label": score["label"]}
                for name, score in stages.items()
                if name != "ema"
            },
            "checks": [
                {
                    "name": "a check",
                    "condition": "bytes",
                    "outcome": "FAIL" if failed else "pass",
                    "figure": "1 of 1",
                    "kind": "recomputed",
                }
            ],
        },
    )
