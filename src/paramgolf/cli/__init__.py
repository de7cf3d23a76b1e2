"""The command `paramgolf`: a module for each kind of command."""

from paramgolf.cli.main import main

__all__ = ["main"]
