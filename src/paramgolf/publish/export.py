"""An artifact's weights for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from paramgolf.compress.artifact import Artifact, read
from paramgolf.errors import UserError
from paramgolf.runtime.files import write_json, write_tensors


def export(path: Path, out: Path) -> Artifact:
    """Write the dequantized weights (float32) to `out`/model.safetensors, beside config.json.

    Raises:
        UserError: if the artifact cannot be read, or `out` holds something already.
    """
    artifact = read(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name another folder with --out")
    write_tensors(out / "model.safetensors", artifact.state())
    hashes = {
        "tokenizer_sha256": artifact.tokenizer_sha256,
        "provenance_sha256": artifact.provenance_sha256,
    }
    write_json(out / "config.json", {"model": asdict(artifact.model), **hashes})
    return artifact
