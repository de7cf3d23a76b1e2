"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from paramgolf.runtime import ledger
from tests.helpers import FakeClock


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: models of this size are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ledger_clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The clock that time ledgers read: it moves when told."""
    clock = FakeClock()
    monkeypatch.setattr(ledger, "time", clock)
    return clock
