"""A run's result as a self-contained directory: code, model, tokenizer, requirements."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from paramgolf.errors import UserError
from paramgolf.runtime.files import copy_file, write_bytes, write_json
from paramgolf.runtime.outputs import require_new_directory
from paramgolf.runtime.records import read_results
from paramgolf.runtime.rundir import RunDir

_REQUIREMENTS = ("torch", "numpy", "sentencepiece", "safetensors", "constriction", "rich")

_ABSOLUTE_PATH = re.compile(r"(?<![\w/.:~-])~?(?:/[^\s/'\"`:;,()\[\]]+)+/?")


def without_paths(value: Any) -> Any:
    """Return JSON values with the name of its last part in place of every absolute path."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if value.startswith("/") and " /" not in value:  # a single path, which may contain spaces
        return Path(value).name
    return _ABSOLUTE_PATH.sub(lambda found: Path(found[0]).name, value)


def bundle(path: Path, out: Path) -> dict[str, int]:
    """Write the bundle of the run at `path` to `out`; return the bytes of every file in it.

    train_gpt.py and model.bin count towards the budget; the tokenizer (unless the run was given
    it), the provenance, the environment, the results and requirements.txt beside them do not.

    Raises:
        UserError: if the run is not packed yet, or `out` is not empty.
    """
    require_new_directory(out)
    run, _, _ = RunDir.open(path)
    if run.stage_result("pack") is None:
        raise UserError(f"{path} is not packed yet; resume it with `paramgolf run --resume {path}`")
    environment = path / "environment.json"
    for file in (run.code, run.artifact, run.tokenizer, run.provenance, environment):
        if not file.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"{file} is a link to {file.resolve()}, outside of the run: what it leads to would "
                "be published; put a copy in its place"
            )
        copy_file(file, out / file.name)
    if run.results_file.exists():
        write_json(out / run.results_file.name, without_paths(read_results(run)))
    pins = [f"{name}=={metadata.version(name).split('+')[0]}\n" for name in _REQUIREMENTS]
    write_bytes(out / "requirements.txt", "".join(pins).encode())
    return {file.name: file.stat().st_size for file in sorted(out.iterdir())}
