"""paramgolf: the best language model that fits a byte budget, and a score one can trust."""

import time

_started = time.monotonic()

from paramgolf.scoring.predictor import Predictor, load  # noqa: E402
from paramgolf.version import __version__  # noqa: E402

IMPORT_SECONDS = time.monotonic() - _started
"""For the books of a run: PyTorch takes seconds to import."""

__all__ = ["IMPORT_SECONDS", "Predictor", "__version__", "load"]
