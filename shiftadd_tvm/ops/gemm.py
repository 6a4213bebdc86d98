"""gemm: many rows of activations times a matrix that is widened panel by panel (prefill).

Unlike `lut`, this multiplies: planes are dequantized to dense panels, which a register-blocked product
reads. It is labelled so wherever operations are counted. The number of rows is symbolic; rows are cut
into static tiles of `ROWS`, the last one padded with zeros.

    gemm_planes  of float32 activations
    gemm_fixed   of the whole numbers that `lut_fix` makes: by the definition here in float32, which a
                 schedule may replace by whole numbers throughout
"""

import numpy as np
from tvm import te
from tvm.tirx import Select, const

from shiftadd_tvm.ops import dense, lut, words
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.ops.shift import Array, apply_terms, reference_terms

ROWS = 6  # rows of a register tile: 6 × 2 vectors of accumulators fit 16 vector registers


def planes_product(values, planes, plane_terms, row_terms, outputs: int, bias=None):
    """Return y (n, N) float32 of values (n, K) and a separable packed linear (see `lut.query`)."""
    tile, shape = planes_tile(values, planes, _levels(planes, plane_terms), outputs)
    return lut.scale_rows(tile, shape, row_terms, bias)


def fixed_product(fixed, exponent, planes, plane_terms, row_terms, outputs: int, bias=None):
    """Return y (n, N) float32 from the results of `lut.fix` and a separable packed linear."""
    tile, shape = planes_tile(fixed, planes, _levels(planes, plane_terms), outputs)
    scaled = lambda m, n: lut.unfixed(tile(m, n), exponent[m, 0])
    return lut.scale_rows(scaled, shape, row_terms, bias)


def _levels(planes, plane_terms):
    """Return (p, n, k) -> c of row n's block in plane p, as float32."""
    blocks, count, terms = (int(size) for size in plane_terms.shape)
    one = const(1.0, "float32")
    levels = te.compute(
        (blocks, count),
        lambda b, p: apply_terms(one, [plane_terms[b, p, t] for t in range(terms)]),
        name="levels",
    )
    rows = words.ROWS if len(planes.shape) > 4 else int(planes.shape[3]) * order.VIEWS
    return lambda p, n, k: levels[n // rows, p]


def planes_tile(values, planes, level, outputs: int):
    """Return (m, n) -> the product with the matrix sum_p level(p, n, k) · plane p, and a shape."""
    if len(planes.shape) > 4:
        return _words_tile(values, planes, level, outputs)
    blocks, count, _, lanes = (int(size) for size in planes.shape)
    panels = order.VIEWS // 2  # of two lane blocks each

    def element(b, k, j):
        view, total = b % panels * 2 + j // lanes, None
        for p in range(count):
            word = planes[b // panels, p, k // order.STEP, j % lanes]
            value = level(p, b * 2 * lanes + j, k)
            is_positive = order.field(word, view, k % order.STEP, 1) == const(1, "uint32")
            signed = Select(is_positive, value, -value)
            total = signed if total is None else total + signed
        return total

    return _product(values, element, blocks * panels, lanes, outputs)


def _words_tile(values, planes, level, outputs: int):
    """Return what `planes_tile` does, for planes in an order of `words.py`: a panel is two row blocks."""
    blocks, count = int(planes.shape[0]), int(planes.shape[2])
    width = 2 * words.ROWS

    def element(b, k, j):
        n = te.min(b * width + j, blocks * words.ROWS - 1)  # the last panel may be half full
        total = None
        for p in range(count):
            word = words.word(planes, p, n, k // words.BITS)
            value = level(p, n, k)
            bit = (word >> (k % words.BITS).astype("uint32")) & const(1, "uint32")
            signed = Select(bit == const(1, "uint32"), value, -value)
            total = signed if total is None else total + signed
        return total

    return _product(values, element, -(-blocks // 2), words.ROWS, outputs)


def dense_product(values, table, outputs: int, scale=None, bias=None):
    """Return y (n, N) float32 of values (n, K) and a matrix in the lane order of `dense.py`."""
    blocks, _, lanes = (int(size) for size in table.shape)
    element = lambda b, k, j: dense.widen(table, b * 2 + j // lanes, k, j % lanes)
    tile, shape = _product(values, element, blocks // 2, lanes, outputs)
    return dense.finish(tile, shape, scale, bias)


def _product(values, element, panels: int, lanes: int, outputs: int):
    """Return (m, n) -> the sum over k, and the shape of y; stages `rows`, `panel`, `sums`."""
    count, inputs = values.shape[0], int(values.shape[1])
    tiles, width = (count + (ROWS - 1)) // ROWS, 2 * lanes
    zero = const(0.0, "float32")
    value = lambda m, k: values[m, k].astype("float32")
    rows = te.compute(
        (tiles, inputs, ROWS),
        lambda t, k, i: te.if_then_else(t * ROWS + i < count, value(t * ROWS + i, k), zero),
        name="rows",
    )
    panel = te.compute((panels, inputs, width), element, name="panel")
    k = te.reduce_axis((0, inputs), "k")
    sums = te.compute(
        (panels, tiles, ROWS, width),
        lambda b, t, i, j: te.sum(rows[t, k, i] * panel[b, k, j], axis=k),
        name="sums",
    )
    # the bound is idle (m < count), but lets TVM prove that `sums` covers what y reads
    tile = lambda m: te.min(m // ROWS, tiles - 1)
    return (lambda m, n: sums[n // width, tile(m), m % ROWS, n % width]), (count, outputs)


def reference_planes(
    values: Array, planes: Array, plane_terms: Array, row_terms: Array, bias: Array | None = None
) -> Array:
    """Return y (n, N) float32 of values (n, K), canonical planes uint8 (P, N, ceil(K / 8)),
    plane_terms (P, terms) and row_terms (N, terms): the same map as `lut_build`, `lut_query`."""
    levels = reference_terms(np.ones((), np.float32), plane_terms)
    signs = np.unpackbits(planes, axis=-1, count=values.shape[1], bitorder="little") * 2.0 - 1
    weights = np.tensordot(levels.astype(np.float64), signs, axes=1)  # (N, K)
    y = reference_terms((values.astype(np.float64) @ weights.T).astype(np.float32), row_terms)
    return y if bias is None else y + bias


def reference_fixed(
    fixed: Array,
    exponent: Array,
    planes: Array,
    plane_terms: Array,
    row_terms: Array,
    bias: Array | None = None,
) -> Array:
    """Return y (n, N) float32 of the results of `lut.reference_fix` and what `reference_planes` takes."""
    width = planes.shape[-1] * order.STEP
    values = lut.reference_unfixed(fixed[:, :width], exponent[:, 0].astype(np.int64))
    return reference_planes(values, planes, plane_terms, row_terms, bias)


REFERENCES = {
    "gemm_planes": reference_planes,
    "gemm_fixed": reference_fixed,
    "gemm_dense": dense.reference_dense,
}
