"""The packed orders of binary planes that GPUs read: whole words of 32 inputs of one row.

    fragments  uint32 (NB, KB, P, 2, 32, 4)
               [b, s, p, h, l, r]: word 8 s + l % 4 + 4 (r // 2) of row 32 b + 16 h + l // 4 + 8 (r % 2)
    lanes      uint32 (NB, KB, P, 32, 4)
               [b, s, p, l, v]: word 4 s + v of row 32 b + l

Bit i of word w is input 32 w + i; 1 means +1. Padding rows and inputs have bits 0. In "fragments" a
lane l of a warp finds, in one load of 16 bytes, what the tensor cores' binary product of 16 rows and
256 inputs wants of it; in "lanes" it finds 128 inputs of a row of its own. Row blocks have 32 rows; the
terms are packed as in `planes.py`.
"""

import numpy as np

from shiftadd_tvm.ops.planes import row_blocks
from shiftadd_tvm.ops.shift import Array

BITS = 32  # inputs of a word
ROWS = 32  # of a row block
STEP = {"fragments": 8, "lanes": 4}  # words of a row that one step holds


def steps(inputs: int, order: str) -> int:
    """Return KB: the steps of K inputs."""
    return -(-inputs // (BITS * STEP[order]))


def words(inputs: int, order: str) -> int:
    """Return the words of a row of K inputs, padded to whole steps."""
    return steps(inputs, order) * STEP[order]


def shape(bits: int, outputs: int, inputs: int, order: str) -> tuple[int, ...]:
    """Return the shape of packed planes of a matrix (N, K)."""
    inner = (2, 32, 4) if order == "fragments" else (32, 4)
    return (row_blocks(outputs, ROWS), steps(inputs, order), bits, *inner)


def word(planes, p, n, w):
    """Return word w of row n in plane p as an expression; the rank tells the order."""
    b, row = n // ROWS, n % ROWS
    if len(planes.shape) == 5:
        return planes[b, w // 4, p, row, w % 4]
    lane = row % 8 * 4 + w % 4
    return planes[b, w // 8, p, row // 16, lane, row % 16 // 8 + w % 8 // 4 * 2]


def pack(planes: Array, order: str) -> Array:
    """Return canonical planes uint8 (P, N, ceil(K / 8)) in a packed order."""
    count, outputs, packed = planes.shape
    blocks, length = row_blocks(outputs, ROWS), words(packed * 8, order)
    padded = np.zeros((count, blocks * ROWS, length * 4), np.uint8)
    padded[:, :outputs, :packed] = planes
    whole = padded.view("<u4")  # (P, rows, words)
    if order == "lanes":
        by_step = whole.reshape(count, blocks, ROWS, length // 4, 4)
        return np.ascontiguousarray(by_step.transpose(1, 3, 0, 2, 4))
    # (P, block, half, high row bit, g, step, high word bit, t)
    parts = whole.reshape(count, blocks, 2, 2, 8, length // 8, 2, 4)
    ordered = np.ascontiguousarray(parts.transpose(1, 5, 0, 2, 4, 7, 6, 3))
    return ordered.reshape(shape(count, outputs, packed * 8, order))


REFERENCES: dict[str, object] = {}  # orders, which operators share, and no operator
