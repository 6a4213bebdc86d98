"""What is freed stays with the process until it is given back, though something small lies above it."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
from shiftadd_tvm import heap

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS:"))

heap.hold()
pairs = [(np.ones(1 << 20), np.ones(1 << 14)) for _ in range(16)]  # 8 MB, and above it 128 KB
kept, full = [small for _, small in pairs], resident()
del pairs
held = resident()
heap.give_back()
print(full, held, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap")
def test_freed_memory_is_held_and_given_back() -> None:
    command = [sys.executable, "-c", SCRIPT]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    full, held, after = map(int, printed.split())  # MB
    assert held > full - 20 and after < full - 100
