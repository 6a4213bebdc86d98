"""lutgemm: the look-up of LUT-GEMM (Park et al., ICLR 2024) and of ShiftAddLLM's GPU path, as a baseline.

    y[m, n] = r[n] · sum_p c[p] · sum_g T[m, g, byte g of row n of plane p]
    T[m, g, i] = sum_j (bit j of i ? +x[m, 8 g + j] : -x[m, 8 g + j])            256 sums of 8 inputs

All in float32, and in any order. The kernel makes the tables of its inputs itself, in the memory that the
threads of a block share. No model is compiled with it: `bench` compares with it.
"""

import numpy as np
from tvm import te
from tvm.tirx import Select, const

from shiftadd_tvm.ops import lut, words
from shiftadd_tvm.ops.shift import Array, reference_terms

ORDER = "lanes"  # of the planes
GROUP = 8  # inputs of a table


def query(x, planes, plane_terms, row_terms, outputs: int):
    """Return y (M, N) float32 of x (M, K) float32, planes in the order "lanes" of `words.py`, plane_terms
    (NB, P, <=3), row_terms (<=3, 32 NB)."""
    rows, inputs = x.shape[0], int(x.shape[1])
    blocks, count = int(planes.shape[0]), int(planes.shape[2])
    k = te.reduce_axis((0, inputs), "k")

    def found(m, b, p, v, i):
        word = words.word(planes, p, b * words.ROWS + i, k // words.BITS)
        bit = (word >> (k % words.BITS).astype("uint32")) & const(1, "uint32")
        return te.sum(Select(bit == const(1, "uint32"), x[m, k], -x[m, k]), axis=k)

    sums = te.compute((rows, blocks, count, 1, words.ROWS), found, name="sums")
    totals = lut.by_row(lut.sum_planes(sums, plane_terms))
    return lut.scale_rows(totals, (rows, outputs), row_terms, None)


def reference_query(x: Array, planes: Array, plane_terms: Array, row_terms: Array) -> Array:
    """Return y (M, N) float32 of x (M, K), canonical planes uint8 (P, N, ceil(K / 8)), plane_terms (P,
    terms) and row_terms (N, terms); sums in float64."""
    flags = np.unpackbits(planes, axis=-1, count=x.shape[1], bitorder="little")
    signs = flags.astype(np.float64) * 2 - 1
    sums = np.einsum("mk,pnk->mpn", x.astype(np.float64), signs).astype(np.float32)
    total = reference_terms(sums, plane_terms[:, None, :]).sum(axis=1, dtype=np.float32)
    return reference_terms(total, row_terms)


REFERENCES = {"lutgemm": reference_query}
