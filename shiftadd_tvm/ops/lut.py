"""lut: a binary-coded matrix times activations by table look-up and addition.

    build   tables[m, g, e] = sum_j (bit j of e ? +x[m, 4 g + j] : -x[m, 4 g + j])    16 signed sums
    query   y[m, n] = r[n] · sum_p c[p] · sum_g tables[m, g, nibble g of plane p of row n]

c and r are sums of powers of two, applied by `shift`; the column scales s and the rotation have
been applied to x before, so one table serves every plane and every linear that reads x.

Packed order "u32-lanes<L>" (L rows side by side, one row a lane, so that every step is vertical):

    planes      uint32 (NB, KB, P, L)   bit t of word [b, kb, p, l] = input 32 kb + t of row b L + l
    row_terms   uint8  (terms, NB L)    transposed, so that lanes load side by side

NB is padded to an even count: prefill (`gemm.py`) reads panels of two lane blocks. Padding rows are
all -1 with absent terms, padding inputs meet activations of zero.

The look-up is written as a reduction over all 16 entries of [nibble == e] · tables[e]: affine in
every index, the same value, and the form that `tensorize` can match. No schedule may compile it as
it stands; each replaces it by a real look-up.
"""

import numpy as np
from tvm import te
from tvm.tirx import Select, const

from shiftadd_tvm.ops.shift import Array, apply_terms, reference_terms

GROUP = 4  # inputs a table covers
ENTRIES = 1 << GROUP
WORD = 32  # inputs a packed word covers
GROUPS = WORD // GROUP


def padded_inputs(inputs: int) -> int:
    """Return K rounded up to whole words."""
    return -(-inputs // WORD) * WORD


def lane_blocks(outputs: int, lanes: int) -> int:
    """Return NB: lane blocks for N rows, padded to an even count."""
    return -(-outputs // (2 * lanes)) * 2


def build(values):
    """Return the tables (M, KB 8, 16) float32 of activations values (M, K) float32."""
    rows, inputs = values.shape[0], int(values.shape[1])
    groups = padded_inputs(inputs) // GROUP
    zero = const(0.0, "float32")

    def signed(m, g, e, j):
        k = g * GROUP + j
        x = values[m, k] if inputs % WORD == 0 else te.if_then_else(k < inputs, values[m, k], zero)
        return Select(((e >> j) & 1) == 1, x, -x)

    def entry(m, g, e):
        return (signed(m, g, e, 0) + signed(m, g, e, 1)) + (signed(m, g, e, 2) + signed(m, g, e, 3))

    return te.compute((rows, groups, ENTRIES), entry, name="tables")


def query(tables, planes, plane_terms, row_terms, outputs: int, bias=None):
    """Return y (M, N) float32; shapes as in the head, plane_terms (P, <=3), bias (N,) float32."""
    rows = tables.shape[0]
    blocks, words, count, lanes = (int(size) for size in planes.shape)
    word = te.reduce_axis((0, words), "word")
    group = te.reduce_axis((0, GROUPS), "group")
    entry = te.reduce_axis((0, ENTRIES), "entry")

    def looked_up(m, b, p, lane):
        shifted = planes[b, word, p, lane] >> (group * GROUP).astype("uint32")
        nibble = shifted & const(ENTRIES - 1, "uint32")
        value = tables[m, word * GROUPS + group, entry]
        chosen = Select(nibble == entry.astype("uint32"), value, const(0.0, "float32"))
        return te.sum(chosen, axis=[word, group, entry])

    sums = te.compute((rows, blocks, count, lanes), looked_up, name="sums")
    # a stage of its own: expressions that nest would repeat the sums in every guard of every term
    totals = te.compute(
        (rows, outputs),
        lambda m, n: _sum_planes(lambda p: sums[m, n // lanes, p, n % lanes], plane_terms),
        name="totals",
    )
    return scale_rows(lambda m, n: totals[m, n], (rows, outputs), row_terms, bias)


def _sum_planes(plane_sum, plane_terms):
    """Return sum_p c[p] · plane_sum(p), c by shifts and adds."""
    count, terms = (int(size) for size in plane_terms.shape)
    total = None
    for p in range(count):
        scaled = apply_terms(plane_sum(p), [plane_terms[p, t] for t in range(terms)])
        total = scaled if total is None else total + scaled
    return total


def scale_rows(value, shape, row_terms, bias):
    """Return y[m, n] = r[n] · value(m, n) (+ bias[n]), r by shifts and adds."""
    terms = int(row_terms.shape[0])

    def scaled(m, n):
        y = apply_terms(value(m, n), [row_terms[t, n] for t in range(terms)])
        return y if bias is None else y + bias[n]

    return te.compute(shape, scaled, name="y")


def pack_planes(planes: Array, lanes: int) -> Array:
    """Return canonical planes uint8 (P, N, ceil(K / 8)) in packed order, uint32 (NB, KB, P, L)."""
    count, outputs, packed = planes.shape
    blocks, words = lane_blocks(outputs, lanes), -(-packed // 4)
    padded = np.zeros((count, blocks * lanes, words * 4), np.uint8)
    padded[:, :outputs, :packed] = planes
    by_word = padded.view("<u4").reshape(count, blocks, lanes, words)
    return np.ascontiguousarray(by_word.transpose(1, 3, 0, 2))


def pack_row_terms(terms: Array, lanes: int) -> Array:
    """Return row terms uint8 (N, terms) transposed and padded: uint8 (terms, NB lanes)."""
    padded = np.zeros((terms.shape[1], lane_blocks(len(terms), lanes) * lanes), np.uint8)
    padded[:, : len(terms)] = terms.T
    return padded


def reference_build(values: Array) -> Array:
    """Return the tables (M, ceil(K / 32) 8, 16) float32 of values (M, K)."""
    rows, inputs = values.shape
    padded = np.zeros((rows, padded_inputs(inputs)), np.float32)
    padded[:, :inputs] = values
    bits = (np.arange(ENTRIES)[:, None] >> np.arange(GROUP)) & 1
    signs = (bits * 2 - 1).astype(np.float32)
    x = padded.reshape(rows, -1, 1, GROUP) * signs
    return (x[..., 0] + x[..., 1]) + (x[..., 2] + x[..., 3])


def reference_query(
    tables: Array, planes: Array, plane_terms: Array, row_terms: Array, bias: Array | None = None
) -> Array:
    """Return y (M, N) float32 from tables (M, G, 16), canonical planes uint8 (P, N, ceil(K / 8)),
    plane_terms (P, terms) and row_terms (N, terms); sums over groups in float64."""
    nibbles = np.stack([planes & 15, planes >> 4], axis=-1).reshape(*planes.shape[:2], -1)
    groups = np.arange(nibbles.shape[-1])
    sums = tables[:, groups, nibbles].sum(axis=-1, dtype=np.float64).astype(np.float32)  # (M, P, N)
    total = reference_terms(sums, plane_terms[:, None, :]).sum(axis=1, dtype=np.float32)
    y = reference_terms(total, row_terms)
    return y if bias is None else y + bias


REFERENCES = {"lut_build": reference_build, "lut_query": reference_query}
