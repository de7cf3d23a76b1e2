"""The version, also where the package is not installed (a bundle, a GPU machine)."""

__version__ = "0.1.0"
