"""paramgolf: small language models within a byte budget, and scores that can be verified."""

import sys
import time

# train_gpt.py unpacks itself before it imports this package, and notes when it started.
_started = getattr(sys.modules["__main__"], "STARTED", None) or time.monotonic()

from paramgolf.scoring.predictor import Predictor, load  # noqa: E402
from paramgolf.version import __version__  # noqa: E402

IMPORT_SECONDS = time.monotonic() - _started
"""For the time ledger of a run: importing PyTorch and unpacking train_gpt.py take seconds."""

__all__ = ["IMPORT_SECONDS", "Predictor", "__version__", "load"]
