"""An artifact's weights in a format that other programs read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from paramgolf.compress.artifact import Artifact, read
from paramgolf.runtime.files import write_json, write_tensors
from paramgolf.runtime.outputs import require_new_directory


def export(path: Path, out: Path) -> Artifact:
    """Write the dequantized weights (float32) to `out`/model.safetensors, and config.json.

    Raises:
        UserError: if the artifact cannot be read, or `out` is not empty.
    """
    require_new_directory(out)
    artifact = read(path)
    write_tensors(out / "model.safetensors", artifact.state())
    hashes = {
        "tokenizer_sha256": artifact.tokenizer_sha256,
        "provenance_sha256": artifact.provenance_sha256,
    }
    write_json(out / "config.json", {"model": asdict(artifact.model), **hashes})
    return artifact
