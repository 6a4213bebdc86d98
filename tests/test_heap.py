"""What a process frees, the system gets back, though something small lies above it."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import numpy as np
from shiftadd_tvm import heap

if sys.argv[1] == "mapped":
    heap.map_large_blocks()
np.ones(3 << 20)  # glibc's threshold follows what is freed
pairs = [(np.ones(1 << 20), np.ones(1 << 14)) for _ in range(16)]  # 8 MB, and above it 128 KB
kept = [small for _, small in pairs]
del pairs
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS:")))
"""


def resident(how: str) -> int:
    """Return the MB that a process keeps which has freed 128."""
    command = [sys.executable, "-c", SCRIPT, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap")
def test_freed_memory_goes_back() -> None:
    assert resident("mapped") + 100 < resident("heap")
