"""paramgolf: small language models within a byte budget, and scores that can be verified."""

from typing import TYPE_CHECKING

from paramgolf.version import __version__

__all__ = ["ConfigError", "Predictor", "Run", "Score", "UserError", "__version__", "load", "run"]

if TYPE_CHECKING:
    from paramgolf.interface import ConfigError, Predictor, Run, Score, UserError, load, run
else:

    def __getattr__(name):
        """Import what needs PyTorch when it is first used."""
        if name in __all__:
            from paramgolf import interface

            return getattr(interface, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
