"""lut_group: the look-ups of `lut.py` for scales that one row and a group of inputs have alone.

    y[m, n] = 2^e · sum_pc a[p, n, c] · (2 sum_{g in c} tables[m, g, nibble g of n] - sum_{k in c} |q|)

    group_terms  uint8 (NB, P, C, terms, L)   the term bytes of a, row by row side by side

Groups are 8 j inputs, up to a chunk of steps (`planes.py`), so that the sums of one group are exact in
the same intrinsic; a is applied to each by `shift`, and what follows adds float32, plane by plane
in order of c: a plane is one stream.
"""

import numpy as np
from tvm import te
from tvm.tirx import Select, const, reinterpret

from shiftadd_tvm.ops import dense, gemm, lut, lut_block
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.ops.lut import Format
from shiftadd_tvm.ops.planes import ENTRIES, GROUP, STEP
from shiftadd_tvm.ops.shift import FRACTION_BITS, Array, apply_terms, reference_terms
from shiftadd_tvm.powers import EXPONENT_BIAS

WHOLE = (127 + FRACTION_BITS - EXPONENT_BIAS) << FRACTION_BITS  # the bits of 2^23 · 2^-bias


def fits(inputs: int, rows: int, columns: int) -> bool:
    """Tell whether scales of blocks (rows, columns) of a matrix with K inputs can be read here."""
    whole = rows == 1 and columns % STEP == 0 and columns // STEP <= order.CHUNK
    return whole and -(-inputs // columns) * columns <= order.steps(inputs) * STEP


def query(tables, scale, planes, group_terms, outputs: int, columns: int, form: Format, bias=None):
    """Return y (M, N) float32 from the results of `lut.build` with groups of `columns` inputs."""
    rows = tables.shape[0]
    blocks, count, _, lanes = (int(size) for size in planes.shape)
    groups, terms = int(group_terms.shape[2]), int(group_terms.shape[3])
    length = columns // STEP
    step = te.reduce_axis((0, length), "step")
    half = te.reduce_axis((0, 2), "half")
    entry = te.reduce_axis((0, ENTRIES), "entry")

    def looked_up(c, m, b, p, v, i):
        s = c * length + step
        index = order.field(planes[b, p, s, i], v, half * GROUP, ENTRIES - 1)
        value = lut.entry_value(tables, form, m, s, half, entry)
        zero = const(0, "uint32")
        chosen = Select(index == entry.astype("uint32"), value, zero)
        return te.sum(chosen, axis=[step, half, entry])

    # the group comes first: the intrinsic matches the axes behind it
    shape = (groups, rows, blocks, count, order.VIEWS, lanes)
    sums = te.compute(shape, looked_up, name="sums")

    def weighted(c, m, b, p, v, i):
        codes = [group_terms[b, p, c, t, v * lanes + i] for t in range(terms)]
        return weigh(sums[c, m, b, p, v, i], scale[m, 1 + c], codes)

    parts = te.compute(shape, weighted, name="weighted")
    c, p = te.reduce_axis((0, groups), "c"), te.reduce_axis((0, count), "p")
    totals = te.compute(
        (rows, blocks, order.VIEWS, lanes),
        lambda m, b, v, i: te.sum(parts[c, m, b, p, v, i], axis=[p, c]),
        name="totals",
    )
    back = lambda m, *at: lut.unfixed(totals(m, *at), scale[m, 0])
    scaled = te.compute(totals.shape, back, name="scaled")
    return dense.finish(lut.by_row(scaled), (rows, outputs), None, bias)


def weigh(found, offset, codes):
    """Return the sum over the term bytes `codes` of (2 · found - offset) · term, float32, for a sum of
    table entries and one of |q|, uint32, with 2 · found and offset below 2^23."""
    return apply_terms((found + found, offset), codes, _difference)


def _difference(numbers, biased):
    """Return 2^(biased - 64) · (the first - the second) of two uint32 `numbers` below 2^23, exactly.

    2^23 + n has n as its fraction. One addition moves its exponent, and it is never zero: a third of
    the steps of `shift`, which has to look at what it moves.
    """
    u32 = lambda number: const(number, "uint32")
    moved = (number + u32(WHOLE) + (biased << u32(FRACTION_BITS)) for number in numbers)
    more, less = (reinterpret("float32", bits) for bits in moved)
    return more - less


def product(values, planes, group_terms, outputs: int, columns: int, bias=None):
    """Return what `query` returns, for many rows of values: dequantized panels, which multiply."""
    blocks, count, groups, terms, rows = (int(size) for size in group_terms.shape)
    one = const(1.0, "float32")
    levels = te.compute(
        (blocks, count, groups, rows),
        lambda b, p, c, n: apply_terms(one, [group_terms[b, p, c, t, n] for t in range(terms)]),
        name="levels",
    )
    level = lambda p, n, k: levels[n // rows, p, k // columns, n % rows]
    tile, shape = gemm.planes_tile(values, planes, level, outputs)
    return dense.finish(tile, shape, None, bias)


def pack_terms(terms: Array, rows: int) -> Array:
    """Return block terms uint8 (P, N, C, terms) in the order that kernels read (see the head)."""
    count, outputs, groups, width = terms.shape
    blocks = order.row_blocks(outputs, rows)
    padded = np.zeros((count, blocks * rows, groups, width), np.uint8)
    padded[:, :outputs] = terms
    by_row = padded.reshape(count, blocks, rows, groups, width)
    return np.ascontiguousarray(by_row.transpose(1, 0, 3, 4, 2))


def reference_weighed(sums: Array, block_terms: Array, by_group: bool = False) -> Array:
    """Return float32 (M, N): whole numbers sums (M, P, N, C) times their block_terms (P, N, C, terms),
    added plane by plane in order of groups, or group by group."""
    weighted = reference_terms(sums.astype(np.float32), block_terms)
    ordered = weighted.transpose(0, 2, 3, 1) if by_group else weighted.transpose(0, 2, 1, 3)
    in_order = ordered.reshape(*ordered.shape[:2], -1)
    return np.add.accumulate(in_order, axis=-1, dtype=np.float32)[..., -1]


def reference_query(
    tables: Array,
    scale: Array,
    planes: Array,
    block_terms: Array,
    columns: int,
    form: Format,
    bias: Array | None = None,
) -> Array:
    """Return y (M, N) float32 from the results of `lut.reference_build` with `columns`, canonical
    planes uint8 (P, N, ceil(K / 8)) and block_terms (P, N, C, terms)."""
    found = lut.reference_entries(tables, planes, form)  # (M, P, N, G)
    begins = np.arange(0, found.shape[-1], columns // GROUP)
    sums = 2 * np.add.reduceat(found, begins, axis=-1) - scale[:, None, None, 1:].astype(np.int64)
    total = reference_weighed(sums, block_terms)
    y = lut.reference_unfixed(total, scale[:, 0].astype(np.int64))
    return y if bias is None else y + bias


def reference_product(
    values: Array, planes: Array, block_terms: Array, columns: int, bias: Array | None = None
) -> Array:
    """Return y (n, N) float32 of values (n, K): the same map without its rounding."""
    return lut_block.reference_query(values, planes, block_terms, 1, columns, bias)


REFERENCES = {"lut_group": reference_query, "gemm_group": reference_product}
