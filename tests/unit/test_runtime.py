"""How a CPU's runtime is set up, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Each tensor is larger than all before it. glibc by itself takes such a one from the kernel every
# time, wherever its heap ends (steps of equal sizes are kept or given back as that decides).
_FAULTS = """
import resource, sys, torch
from paramgolf.runtime.device import select_runtime
if "kept" in sys.argv:
    select_runtime("cpu")
torch.ones(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in range(1, 29):
    torch.ones(megabytes << 18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Page faults of taking and freeing 1 MB, 2 MB, ... 28 MB."""
    command = [sys.executable, "-c", _FAULTS, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no mallopt")
def test_freed_memory_is_taken_again() -> None:
    # 28 of 406 MB, and as much again for each piece of the heap that something small pins.
    assert faults("kept") < faults() / 2
