"""paramgolf: the best language model that fits a byte budget, and a score one can trust."""

from paramgolf.scoring.predictor import Predictor, load
from paramgolf.version import __version__

__all__ = ["Predictor", "__version__", "load"]
