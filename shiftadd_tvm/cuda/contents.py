"""What an archive for a GPU holds of its arguments: bytes, or the seed that they are made up of.

Part of the programs that run where the GPU is (`gpu.py`); who builds an archive makes up the same.
"""

from __future__ import annotations

import hashlib
import zipfile
from typing import Any

# high bytes of float16 whose magnitude lies between a quarter and a half
MODEST = bytes((byte & 0x83) | 0x34 for byte in range(256))


def drawn(seed: str, size: int) -> bytes:
    """Return that many random bytes, the same for each seed."""
    return hashlib.shake_128(seed.encode()).digest(size)


def halves(seed: str, size: int) -> bytes:
    """Return that many bytes of random float16 between a quarter and a half, of either sign."""
    made = bytearray(drawn(seed, size))
    made[1::2] = made[1::2].translate(MODEST)
    return bytes(made)


def content(archive: zipfile.ZipFile, argument: dict[str, Any]) -> bytes:
    """Return the bytes of an argument."""
    if "file" in argument:
        return archive.read(argument["file"])
    make = halves if argument.get("halves") else drawn
    return make(argument["seed"], argument["bytes"])
