"""Let the C library give freed tensors back to the system at once.

glibc serves what is smaller than a threshold from its heap, and raises the threshold up to 32 MB when
something larger is freed. The tensors of a block then lie in the heap, between small things that
live longer, and what is freed there stays with the process: it was half of a quantization's memory.
"""

import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 1 << 20


def map_large_blocks() -> None:
    """Fix glibc's threshold for this process: every large block is a mapping of its own.

    Nothing happens where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
