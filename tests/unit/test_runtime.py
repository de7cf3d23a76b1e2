"""How a CPU's runtime is set up, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys, torch
from paramgolf.runtime import select_runtime
if "kept" in sys.argv:
    select_runtime("cpu")
def step():
    tensors = [torch.ones(1 << 20) for _ in range(16)]  # 4 MB each
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Page faults of ten steps that take and free 64 MB."""
    command = [sys.executable, "-c", _FAULTS, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no mallopt")
def test_freed_memory_is_taken_again() -> None:
    assert faults("kept") < faults() / 10
