"""paramgolf: the best language model that fits a byte budget, and a score one can trust."""

from paramgolf.scoring.predictor import Predictor, load

__all__ = ["Predictor", "load"]
