"""paramgolf: the best language model that fits a byte budget, and a score one can trust."""

import sys
import time

# train_gpt.py decodes itself before this, and says when it began.
_started = getattr(sys.modules["__main__"], "STARTED", None) or time.monotonic()

from paramgolf.scoring.predictor import Predictor, load  # noqa: E402
from paramgolf.version import __version__  # noqa: E402

IMPORT_SECONDS = time.monotonic() - _started
"""For the books of a run: PyTorch takes seconds to import, and train_gpt.py to decode itself."""

__all__ = ["IMPORT_SECONDS", "Predictor", "__version__", "load"]
