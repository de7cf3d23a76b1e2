"""When this process started, and how many seconds its imports took (PyTorch takes several).

`paramgolf/__init__.py` imports this module before all others and calls `finish_imports` after them.
"""

from __future__ import annotations

import sys
import time

# Whoever does something before `import paramgolf` (train_gpt.py unpacks itself) sets STARTED first.
_started = getattr(sys.modules["__main__"], "STARTED", None) or time.monotonic()
_imported = _started


def finish_imports() -> None:
    """Note that all imports are done."""
    global _imported
    _imported = time.monotonic()


def import_seconds() -> float:
    """Return the seconds from the start of the process to the end of its imports."""
    return _imported - _started
