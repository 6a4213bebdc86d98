"""Hold the C library's heap while tensors come and go, and give back what is free between stages.

glibc by itself gives a large block back as soon as it is freed, or keeps it forever where something
small lies above it. The first costs a fault for every page of every tensor: a product of 512 x 1536
numbers took 2.6 ms instead of 0.1 to 0.2. The second was half of a quantization's memory.
"""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_... of glibc's malloc.h
_LARGE = 32 << 20  # the most that glibc takes from its heap
_NEVER = 1 << 30


def hold() -> None:
    """Let this process keep the tensors that it frees, for those to come."""
    _call("mallopt", _MMAP_THRESHOLD, _LARGE)
    _call("mallopt", _TRIM_THRESHOLD, _NEVER)


def give_back() -> None:
    """Give the pages that are free back to the system, wherever they lie."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library; another one than glibc may not have it."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
