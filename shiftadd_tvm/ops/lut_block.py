"""lut for block scales (row-group, column-wise, block-wise): correct on every target, not fast.

    columns = 4 j   y[m, n] = sum_p sum_c a[p, n / rows, c] · (sum over the groups of c of look-ups)
    columns = 1     tables of a[p, n / rows, k] · x[m, k], a set per plane and row block, then adds

a is applied by `shift`. It exists to run the paper's formats side by side with the separable one;
planes are packed as in `planes.py`.
"""

import numpy as np
from tvm import te
from tvm.tirx import Select, const

from shiftadd_tvm.bcq import unpack_planes
from shiftadd_tvm.ops import dense, gemm, lut_float
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.ops.shift import Array, apply_terms, reference_terms


def query(values, planes, block_terms, outputs: int, rows: int, columns: int, bias=None):
    """Return y (M, N) float32 of values (M, K), planes in packed order and block_terms
    (P, ceil(N / rows), ceil(K / columns), <=3); unlike `lut.query` it builds its own tables."""
    form = _columnwise if columns == 1 else _grouped
    lookups = form(values, planes, block_terms, rows, columns)
    shape = (values.shape[0], outputs)
    sums = te.compute(shape, lookups, name="sums")
    return dense.finish(lambda m, n: sums[m, n], shape, None, bias)


def _grouped(values, planes, block_terms, rows: int, columns: int):
    count, _, blocks, terms = (int(size) for size in block_terms.shape)
    groups = -(-int(values.shape[1]) // order.GROUP)
    tables = lut_float.build(values)
    g = te.reduce_axis((0, columns // order.GROUP), "g")
    outputs = int(planes.shape[0]) * int(planes.shape[3]) * order.VIEWS

    def partial(m, n, p, c):
        group = c * (columns // order.GROUP) + g
        index = order.nibble(planes, p, n, group)
        found = tables[m, group // 2, group % 2, index]
        return te.sum(te.if_then_else(group < groups, found, const(0.0, "float32")), axis=g)

    shape = (values.shape[0], outputs, count, blocks)
    partials = te.compute(shape, partial, name="partials")
    p, c = te.reduce_axis((0, count), "p"), te.reduce_axis((0, blocks), "c")

    def summed(m, n):
        codes = [block_terms[p, n // rows, c, t] for t in range(terms)]
        return te.sum(apply_terms(partials[m, n, p, c], codes), axis=[p, c])

    return summed


def _columnwise(values, planes, block_terms, rows: int, columns: int):
    count, row_blocks, inputs, terms = (int(size) for size in block_terms.shape)
    groups, zero = -(-inputs // order.GROUP), const(0.0, "float32")

    def scaled(m, p, b, k):
        codes = [block_terms[p, b, k, t] for t in range(terms)]
        return te.if_then_else(k < inputs, apply_terms(values[m, k], codes), zero)

    shape = (values.shape[0], count, row_blocks, groups * order.GROUP)
    shifted = te.compute(shape, scaled, name="shifted")

    def entry(m, p, b, g, e):
        signed = [
            Select(((e >> j) & 1) == 1, shifted[m, p, b, g * 4 + j], -shifted[m, p, b, g * 4 + j])
            for j in range(order.GROUP)
        ]
        return (signed[0] + signed[1]) + (signed[2] + signed[3])

    tables = te.compute((*shape[:3], groups, order.ENTRIES), entry, name="tables")
    p, g = te.reduce_axis((0, count), "p"), te.reduce_axis((0, groups), "g")

    def summed(m, n):
        return te.sum(tables[m, p, n // rows, g, order.nibble(planes, p, n, g)], axis=[p, g])

    return summed


def product(values, planes, block_terms, outputs: int, rows: int, columns: int, bias=None):
    """Return what `query` returns, for many rows of values: dequantized panels, which multiply."""
    count, row_blocks, blocks, terms = (int(size) for size in block_terms.shape)
    one = const(1.0, "float32")
    levels = te.compute(
        (count, row_blocks, blocks),
        lambda p, b, c: apply_terms(one, [block_terms[p, b, c, t] for t in range(terms)]),
        name="levels",
    )
    level = lambda p, n, k: levels[p, te.min(n // rows, row_blocks - 1), k // columns]
    tile, shape = gemm.planes_tile(values, planes, level, outputs)
    return dense.finish(tile, shape, None, bias)


def reference_query(
    values: Array,
    planes: Array,
    block_terms: Array,
    rows: int,
    columns: int,
    bias: Array | None = None,
) -> Array:
    """Return y (M, N) float32 of values (M, K) and canonical planes uint8 (P, N, ceil(K / 8))."""
    outputs, inputs = planes.shape[1], values.shape[1]
    levels = reference_terms(np.ones((), np.float32), block_terms)  # (P, N / rows, K / columns)
    by_row = np.repeat(levels, rows, axis=1)[:, :outputs]
    weights = np.repeat(by_row, columns, axis=2)[:, :, :inputs] * unpack_planes(planes, inputs)
    y = (values.astype(np.float64) @ weights.astype(np.float64).sum(axis=0).T).astype(np.float32)
    return y if bias is None else y + bias


REFERENCES = {"lut_block": reference_query, "gemm_block": reference_query}
