"""The packed order of binary planes, "bytes-rows<L>": what every kernel of a target reads.

    planes     uint32 (NB, P, KB, L / 4)   bit 8 v + t of word [b, p, s, i]: input 8 s + t of row
                                           b L + v (L / 4) + i in plane p; 1 means +1
    row_terms  uint8 (terms, NB L)         transposed, so that lanes load side by side

One step is 8 inputs of L rows: L bytes, one vector, a row a byte; each byte holds two look-up indices
of 4 bits. Byte v of every 32-bit lane belongs to one run of L / 4 rows, so what is summed in bytes, in
16-bit halves or in 32-bit lanes comes apart by shifts and masks, in row order, without a shuffle. A
plane of a row block is one stream from first step to last.

Steps are padded to whole chunks of at most `CHUNK`, over which 16-bit sums of look-ups stay exact
(`lut.py`). Padding rows have bits 0 and absent terms, padding inputs meet activations of zero.
"""

import numpy as np
from tvm.tirx import const

from shiftadd_tvm.ops.shift import Array

GROUP = 4  # inputs that one look-up covers
ENTRIES = 1 << GROUP
STEP = 2 * GROUP  # inputs of one byte
VIEWS = 4  # bytes of a 32-bit lane
CHUNK = 128  # steps


def chunks(inputs: int) -> int:
    """Return how many equal chunks the steps of K inputs form."""
    return -(-inputs // (STEP * CHUNK))


def steps(inputs: int) -> int:
    """Return KB: the steps of K inputs, padded to whole chunks."""
    count = chunks(inputs)
    return -(-inputs // (STEP * count)) * count


def row_blocks(outputs: int, rows: int) -> int:
    """Return NB: blocks of L = `rows` rows for N outputs."""
    return -(-outputs // rows)


def shape(bits: int, outputs: int, inputs: int, rows: int) -> tuple[int, int, int, int]:
    """Return the shape of packed planes of a matrix (N, K) with row blocks of L = `rows`."""
    return (row_blocks(outputs, rows), bits, steps(inputs), rows // VIEWS)


def field(word, view, bit, mask: int):
    """Return the bits of `mask` (uint32) of a word, from bit `bit` of byte `view` on."""
    shift = (view * STEP + bit).astype("uint32")
    return (word >> shift) & const(mask, "uint32")


def nibble(planes, p, n, g):
    """Return the int32 index of group g (inputs 4 g .. 4 g + 3) of row n in plane p."""
    lanes = int(planes.shape[3])
    word = planes[n // (lanes * VIEWS), p, g // 2, n % lanes]
    view = n % (lanes * VIEWS) // lanes
    return field(word, view, (g % 2) * GROUP, ENTRIES - 1).astype("int32")


def pack(planes: Array, rows: int) -> Array:
    """Return canonical planes uint8 (P, N, ceil(K / 8)) in packed order for row blocks of `rows`."""
    count, outputs, packed = planes.shape
    blocks, _, length, lanes = shape(count, outputs, packed * STEP, rows)
    padded = np.zeros((count, blocks * rows, length), np.uint8)
    padded[:, :outputs, :packed] = planes
    by_row = padded.reshape(count, blocks, VIEWS, lanes, length)
    return np.ascontiguousarray(by_row.transpose(1, 0, 4, 3, 2)).view("<u4")[..., 0]


def pack_row_terms(terms: Array, rows: int) -> Array:
    """Return row terms uint8 (N, terms) transposed and padded: uint8 (terms, NB rows)."""
    padded = np.zeros((terms.shape[1], row_blocks(len(terms), rows) * rows), np.uint8)
    padded[:, : len(terms)] = terms.T
    return padded


REFERENCES: dict[str, object] = {}  # an order, which operators share, and no operator
