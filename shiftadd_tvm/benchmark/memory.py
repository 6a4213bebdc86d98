"""Buffers that are read from memory and not from a cache, and the roof that reading them gives."""

import mmap
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

LEAST_PROBE = 256 << 20  # bytes
CACHES = 8  # how many times the last cache's size a probed buffer has
LEAST_COLD = 200_000_000  # bytes
COLD_CACHES = 2  # how many times the last cache's size weights have that no cache keeps
HUGE = 2 << 20

Array = np.ndarray


def last_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the bytes of the largest cache that Linux reports, 0 where it reports none."""
    sizes = [0]
    for file in folder.glob("index*/size"):
        text = file.read_text("ascii").strip()
        scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * scale)
    return max(sizes)


def probe_bytes() -> int:
    """Return the size of the buffer that a memory probe reads."""
    return max(LEAST_PROBE, -(-CACHES * last_cache() // HUGE) * HUGE)


def cold_bytes() -> int:
    """Return the bytes of weights to go through in turns, so that each comes from memory."""
    return max(LEAST_COLD, COLD_CACHES * last_cache())


def huge_zeros(nbytes: int) -> Array:
    """Return uint8 zeros on huge pages where Linux gives them: fewer address translations to miss."""
    size = max(-(-nbytes // HUGE) * HUGE, HUGE)
    pages = mmap.mmap(-1, size + HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(pages, np.uint8)
    start = -raw.ctypes.data % HUGE
    return raw[start : start + nbytes]


def probe_words(nbytes: int) -> Array:
    """Return uint32 words that are really in memory: every page is written."""
    words = huge_zeros(nbytes).view(np.uint32)
    words[...] = np.arange(words.size, dtype=np.uint32)
    return words


def probe_views(
    words: Array, shapes: Mapping[str, tuple[int, int]], threads: int
) -> dict[str, Array]:
    """Return the words (n, runs, blocks, columns) for each reading, one part a thread; `shapes` maps
    a function to (runs, columns). What does not fill whole parts at the end is left out."""
    views = {}
    for name, (runs, columns) in shapes.items():
        unit = threads * runs * columns
        views[name] = words[: words.size // unit * unit].reshape(threads, runs, -1, columns)
    return views


def roof(rates: Mapping[str, Sequence[float]]) -> list[float]:
    """Return the rates (bytes a second) of the reading whose median is the highest."""
    found = readings(rates)
    return list(rates[max(found, key=found.__getitem__)])


def readings(rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median rate of each reading."""
    return {name: statistics.median(values) for name, values in rates.items()}
