"""What this machine's processor is: its architecture, its features, how many cores we may use."""

import os
import platform
import resource
from pathlib import Path


def machine() -> str:
    """Return the architecture as the kernel names it, such as "x86_64" or "aarch64"."""
    return platform.machine()


def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the feature flags that Linux reports (empty where it reports none)."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def parts(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[tuple[int, int]]:
    """Return (implementer, part) of every processor, by which ARM's are known; empty elsewhere.

    A machine with large and small cores has several.
    """
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    found, implementer = set(), None
    for line in lines:
        key, value = (half.strip() for half in line.partition(":")[::2])
        if key == "CPU implementer":
            implementer = int(value, 0)
        elif key == "CPU part" and implementer is not None:
            found.add((implementer, int(value, 0)))
    return frozenset(found)


def model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as Linux reports it, else its architecture."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return machine()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return machine()


def caches(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Return the bytes of the first processor's data caches by level, such as {"L1": 32768}."""
    found = {}
    for index in sorted(root.glob("index*")):
        try:
            kind, level, text = (
                (index / name).read_text("utf-8").strip() for name in ("type", "level", "size")
            )
        except OSError:
            continue
        if kind != "Instruction" and text.endswith("K"):
            found[f"L{level}"] = int(text[:-1]) * 1024
    return found


def cores() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """Return the most bytes that this process has held resident.

    Linux's own mark, since getrusage counts what a parent held when it forked; getrusage elsewhere.
    """
    try:
        lines = status.read_text("utf-8").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
