"""When this process started, and how many seconds its imports took (PyTorch takes several).

The command `paramgolf` imports this module first. `pipeline.run` imports PyTorch and all stages,
and then calls `finish_imports`.
"""

from __future__ import annotations

import sys
import time

# Whoever does something before importing this module (train_gpt.py unpacks itself) sets STARTED.
_started = getattr(sys.modules["__main__"], "STARTED", None) or time.monotonic()
_imported = _started


def finish_imports() -> None:
    """Note that all imports are done."""
    global _imported
    _imported = time.monotonic()


def import_seconds() -> float:
    """Return the seconds from the start of the process to the end of its imports."""
    return _imported - _started
