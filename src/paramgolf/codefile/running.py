"""The code file of a run: built from the installed package, or the file that is running."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from paramgolf.config import RunConfig


def running_file() -> Path | None:
    """Return the `train_gpt.py` that this program runs from; None for the installed package."""
    spec = find_spec("paramgolf")
    if spec is None or spec.origin is None or Path(spec.origin).name == "__init__.py":
        return None
    return Path(spec.origin).parent  # the module is a path inside of the file


def code_file(config: RunConfig) -> bytes:
    """Return the content of `train_gpt.py` for a run of `config`.

    A program that was started from such a file returns that file unchanged.
    """
    if path := running_file():
        return path.read_bytes()
    from paramgolf.codefile.build import build

    return build(config)
