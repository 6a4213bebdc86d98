"""What a decode step reads, from an artifact's manifest alone."""

import math

import numpy as np

from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.errors import UnsupportedError

DECODE = "decode_b1"


def check(artifact: Artifact) -> None:
    """Raise `UnsupportedError` for an artifact that was compiled before there was a bench."""
    functions = artifact.section("functions")
    if "read_memory" not in functions or "looked_up" not in artifact.manifest:
        raise UnsupportedError(
            f"{artifact.path} was compiled by a version that had no bench, it cannot measure memory "
            "bandwidth; compile it again."
        )


def weight_bytes(artifact: Artifact) -> int:
    """Return the bytes of all parameters that a decode step reads whole: planes, scales, norms and
    head, but not an embedding of which it reads one row."""
    looked_up = artifact.manifest["looked_up"]
    assert isinstance(looked_up, list)
    return sum(p.nbytes for p in artifact.parameters if p.name not in looked_up)


def cache_bytes(artifact: Artifact, length: float) -> float:
    """Return the bytes of keys and values that a decode step reads of `length` positions."""
    functions = artifact.section("functions")
    signature = functions[DECODE]
    assert isinstance(signature, dict)
    tensors = {entry["name"]: entry for entry in signature["inputs"]}
    page = artifact.number("limits", "page")
    total = 0.0
    for name in ("keys", "values"):
        sizes = [size for size in tensors[name]["shape"] if isinstance(size, int)]
        total += math.prod(sizes) * np.dtype(tensors[name]["dtype"]).itemsize / page
    return total * length
