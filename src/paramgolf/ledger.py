"""The books: seconds of every phase, on one monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Ledger:
    """Seconds by phase; phases do not overlap, and one phase may be entered many times."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the seconds of the block under `name`, also when it ends in an error."""
        assert self._open is None, f"phase {name} inside {self._open}"
        self._open = name
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - start)
            self._open = None

    def add(self, name: str, seconds: float) -> None:
        """Book seconds that were measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, in the order of their first entry."""
        return dict(self._seconds)
