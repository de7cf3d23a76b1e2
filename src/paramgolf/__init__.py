"""paramgolf: small language models within a byte budget, and scores that can be verified."""

from typing import TYPE_CHECKING, Any

from paramgolf.version import __version__

if TYPE_CHECKING:
    from paramgolf.scoring.predictor import Predictor, load

__all__ = ["Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` and `Predictor`, and with them PyTorch, when they are first used."""
    if name in ("Predictor", "load"):
        from paramgolf.scoring import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
