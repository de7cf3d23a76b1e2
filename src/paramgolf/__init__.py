"""paramgolf: the best language model that fits a byte budget, and a score one can trust."""

from paramgolf.runtime import startup  # first: it notes when the imports began

from paramgolf.scoring.predictor import Predictor, load  # isort: skip
from paramgolf.version import __version__  # isort: skip

startup.finish_imports()

__all__ = ["Predictor", "__version__", "load"]
