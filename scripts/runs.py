"""Used by other scripts: runs that are started or, if they exist, resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_or_resume(
    recipe: str, out: Path, options: Sequence[str], launch: Sequence[str] = ()
) -> dict:
    """Run a recipe in `out`, or resume the run there, and return its results.

    Args:
        recipe: its name.
        out: the run directory.
        options: of the recipe, for a new run.
        launch: a module that starts the command, with its options, such as torchrun's.
    """
    command = [sys.executable, *launch, "-m", "paramgolf", "run"]
    if (out / "config.json").exists():
        command += ["--resume", str(out)]
    else:
        command += [recipe, "--out", str(out), *options]
    subprocess.run(command, check=True)
    return json.loads((out / "results.json").read_text())
