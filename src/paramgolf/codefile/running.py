"""The code file of a run: built from the installed package, or the file that is running."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from paramgolf.config import RunConfig


def code_file(config: RunConfig) -> bytes:
    """Return the content of `train_gpt.py` for a run of `config`.

    A program that was started from such a file returns that file unchanged.
    """
    spec = find_spec("paramgolf")
    if spec is not None and spec.origin is not None and Path(spec.origin).name != "__init__.py":
        return Path(spec.origin).parent.read_bytes()  # the module is a path inside of the file
    from paramgolf.codefile.build import build

    return build(config)
