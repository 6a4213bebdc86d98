"""lut_float: the look-ups of `lut.py` over tables of float32, which round nothing but the sums.

    build   tables[m, g, i] = sum_j (bit j of i ? +x[m, 4 g + j] : -x[m, 4 g + j])    16 signed sums
    query   y[m, n] = r[n] · sum_p c[p] · sum_g tables[m, g, nibble g of row n of plane p]

The reference among the activation formats. It reads the same packed planes.
"""

import numpy as np
from tvm import te
from tvm.tirx import Select, const

from shiftadd_tvm.ops import lut
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.ops.planes import ENTRIES, GROUP
from shiftadd_tvm.ops.shift import Array, reference_terms

NAME = "float32"  # of the format, beside `lut.FORMATS`


def build(values):
    """Return the tables (M, KB, 2, 16) float32 of activations values (M, K) float32."""
    rows, inputs = values.shape[0], int(values.shape[1])
    length, zero = order.steps(inputs), const(0.0, "float32")

    def signed(m, g, entry, j):
        k = g * GROUP + j
        whole = inputs == length * order.STEP
        x = values[m, k] if whole else te.if_then_else(k < inputs, values[m, k], zero)
        return Select(((entry >> j) & 1) == 1, x, -x)

    def summed(m, s, half, entry):
        x = [signed(m, s * 2 + half, entry, j) for j in range(GROUP)]
        return (x[0] + x[1]) + (x[2] + x[3])

    return te.compute((rows, length, 2, ENTRIES), summed, name="tables")


def query(tables, planes, plane_terms, row_terms, outputs: int, bias=None):
    """Return y (M, N) float32; the operands beside tables are those of `lut.query`."""
    rows = tables.shape[0]
    blocks, count, length, lanes = (int(size) for size in planes.shape)
    step = te.reduce_axis((0, length), "step")
    half = te.reduce_axis((0, 2), "half")
    entry = te.reduce_axis((0, ENTRIES), "entry")

    def looked_up(m, b, p, v, i):
        index = order.field(planes[b, p, step, i], v, half * GROUP, ENTRIES - 1)
        value = tables[m, step, half, entry]
        chosen = Select(index == entry.astype("uint32"), value, const(0.0, "float32"))
        return te.sum(chosen, axis=[step, half, entry])

    sums = te.compute((rows, blocks, count, order.VIEWS, lanes), looked_up, name="sums")
    totals = lut.by_row(lut.sum_planes(sums, plane_terms))
    return lut.scale_rows(totals, (rows, outputs), row_terms, bias)


def reference_build(values: Array) -> Array:
    """Return the tables (M, KB, 2, 16) float32 of values (M, K)."""
    rows, inputs = values.shape
    padded = np.zeros((rows, order.steps(inputs), 2, 1, GROUP), np.float32)
    padded.reshape(rows, -1)[:, :inputs] = values
    bits = (np.arange(ENTRIES)[:, None] >> np.arange(GROUP)) & 1
    x = padded * (bits * 2 - 1).astype(np.float32)
    return (x[..., 0] + x[..., 1]) + (x[..., 2] + x[..., 3])


def reference_query(
    tables: Array, planes: Array, plane_terms: Array, row_terms: Array, bias: Array | None = None
) -> Array:
    """Return y (M, N) float32 from tables (M, KB, 2, 16), canonical planes uint8 (P, N,
    ceil(K / 8)), plane_terms (P, terms) and row_terms (N, terms); sums over groups in float64."""
    nibbles = np.stack([planes & 15, planes >> 4], axis=-1).reshape(*planes.shape[:2], -1)
    groups = np.arange(nibbles.shape[-1])
    entries = tables.reshape(len(tables), -1, ENTRIES)
    sums = entries[:, groups, nibbles].sum(axis=-1, dtype=np.float64).astype(np.float32)
    total = reference_terms(sums, plane_terms[:, None, :]).sum(axis=1, dtype=np.float32)
    y = reference_terms(total, row_terms)
    return y if bias is None else y + bias


REFERENCES = {"lut_float_build": reference_build, "lut_float_query": reference_query}
