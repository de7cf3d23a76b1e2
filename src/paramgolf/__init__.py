"""paramgolf: small language models within a byte budget, and scores that can be verified."""

from paramgolf.runtime import startup  # first: records when the imports start

from paramgolf.scoring.predictor import Predictor, load  # isort: skip
from paramgolf.version import __version__  # isort: skip

startup.finish_imports()

__all__ = ["Predictor", "__version__", "load"]
