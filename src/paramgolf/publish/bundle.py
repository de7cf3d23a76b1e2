"""A run's result as one folder that stands alone: code, model, tokenizer, requirements."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from paramgolf.errors import UserError
from paramgolf.runtime.files import copy_file, write_bytes
from paramgolf.runtime.rundir import RunDir

_NEEDS = ("torch", "numpy", "sentencepiece", "safetensors", "constriction", "rich")


def bundle(path: Path, out: Path) -> dict[str, int]:
    """Write the folder of the run at `path` to `out`; gives the bytes of every file.

    train_gpt.py and model.bin count; the tokenizer, the provenance and requirements.txt lie beside.

    Raises:
        UserError: if the run is not packed yet, or `out` holds something already.
    """
    run, _, _ = RunDir.open(path)
    if run.stage_result("pack") is None:
        raise UserError(f"{path} is not packed yet: go on with `paramgolf run --resume {path}`")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name another folder with --out")
    for file in (run.code, run.artifact, run.tokenizer, run.provenance):
        copy_file(file, out / file.name)
    pins = [f"{name}=={metadata.version(name).split('+')[0]}\n" for name in _NEEDS]
    write_bytes(out / "requirements.txt", "".join(pins).encode())
    return {file.name: file.stat().st_size for file in sorted(out.iterdir())}
