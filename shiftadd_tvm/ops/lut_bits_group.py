"""lut_bits_group: the sums of `lut_bits.py` for scales that one row and a group of inputs have alone.

    y[m, n] = 2^e · sum_cp a[p, n, c] · (2 sum_{k in c} u[p, n, k] q[m, k] - sum_{k in c} q[m, k])

    scale        uint32 (M, 1 + C)              e + 64, and the sum of each group of q
    group_terms  uint8 (NB, P, C, terms, 32)    the term bytes of a, as `lut_group.py` packs them

A group is half a step of the order "fragments", or a whole one: its sums are exact in 32 bits with all
digits put together. Each is rounded to float32 once; a is applied to it by `shift`, and what follows adds
float32 in order of c and p, so that every kernel gives the same numbers.
"""

import numpy as np
from tvm import te, tirx
from tvm.tirx import Select, const

from shiftadd_tvm.ops import dense, lut, lut_bits, lut_group, words
from shiftadd_tvm.ops.lut_bits import Format
from shiftadd_tvm.ops.shift import Array, apply_terms, shift_whole

COLUMNS = (128, 256)  # inputs of a group


def fits(form: Format, rows: int, columns: int) -> bool:
    """Tell whether scales of blocks (rows, columns) can be read here, beside activations of a format."""
    return form.order == "fragments" and rows == 1 and columns in COLUMNS


def build(values, form: Format, columns: int):
    """Return bits (M, W, 8 D) and scale (M, 1 + C), uint32, of values (M, K) float32."""
    rows, inputs = values.shape[0], int(values.shape[1])
    fixed, exponent = lut.fixed(values, form.fixed)
    groups = -(-inputs // columns)
    j = te.reduce_axis((0, columns), "j")

    def total(m, c):
        k = c * columns + j
        held = fixed[m, te.min(k, inputs - 1)].astype("int32")
        value = te.if_then_else(k < inputs, held, const(0, "int32"))
        return te.sum(value.astype("uint32"), axis=j)

    totals = te.compute((rows, groups), total, name="totals")
    both = lambda m, i: te.if_then_else(i == 0, exponent(m), totals[m, te.max(i - 1, 0)])
    scale = te.compute((rows, 1 + groups), both, name="scale")
    return [lut_bits.bits_of(fixed, form), scale]


def query(bits, scale, planes, group_terms, outputs: int, columns: int, form: Format, bias=None):
    """Return y (M, N) float32 from the results of `build`."""
    rows, length = bits.shape[0], columns // words.BITS
    blocks, count, groups, terms, lanes = (int(size) for size in group_terms.shape)
    w, j = te.reduce_axis((0, length), "w"), te.reduce_axis((0, form.width), "j")

    def found(m, b, c, p, n):
        at = c * length + w
        word = words.word(planes, p, b * words.ROWS + n, at)
        ones = tirx.popcount(word & bits[m, at, j]) << j.astype("uint32")
        return te.sum(Select(j == form.width - 1, const(0, "uint32") - ones, ones), axis=[w, j])

    shape = (rows, blocks, groups, count, lanes)
    sums = te.compute(shape, found, name="sums")
    wide = lambda value: value.astype("int32").astype("int64")

    def signed(m, b, c, p, n):
        twice = wide(sums[m, b, c, p, n]) + wide(sums[m, b, c, p, n])
        return (twice - wide(scale[m, 1 + c])).astype("float32")

    centred = te.compute(shape, signed, name="signed")

    def weighted(m, b, c, p, n):
        codes = [group_terms[b, p, c, t, n] for t in range(terms)]
        return apply_terms(centred[m, b, c, p, n], codes, shift_whole)

    parts = te.compute(shape, weighted, name="weighted")
    c, p = te.reduce_axis((0, groups), "c"), te.reduce_axis((0, count), "p")
    totals = te.compute(
        (rows, blocks, 1, lanes),
        lambda m, b, _, n: te.sum(parts[m, b, c, p, n], axis=[c, p]),
        name="totals",
    )
    back = lambda m, *at: lut.unfixed(totals(m, *at), scale[m, 0])
    scaled = te.compute(totals.shape, back, name="scaled")
    return dense.finish(lut.by_row(scaled), (rows, outputs), None, bias)


def _groups(fixed: Array, columns: int) -> Array:
    """Return numbers (..., K) as (..., C, columns), padded with zeros."""
    inputs = fixed.shape[-1]
    groups = -(-inputs // columns)
    padded = np.zeros((*fixed.shape[:-1], groups * columns), fixed.dtype)
    padded[..., :inputs] = fixed
    return padded.reshape(*fixed.shape[:-1], groups, columns)


def reference_build(values: Array, form: Format, columns: int) -> tuple[Array, Array]:
    """Return bits (M, W, 8 D) and scale (M, 1 + C), uint32, of values (M, K)."""
    fixed, exponents = lut_bits.reference_fixed(values, form)
    sums = _groups(fixed, columns).sum(axis=-1)
    scale = np.concatenate([exponents[:, None], sums], axis=1)
    return lut_bits.reference_build(values, form)[0], scale.astype(np.int64).astype(np.uint32)


def reference_query(
    values: Array,
    planes: Array,
    block_terms: Array,
    columns: int,
    form: Format,
    bias: Array | None = None,
) -> Array:
    """Return y (M, N) float32 of values (M, K) float32, canonical planes uint8 (P, N, ceil(K / 8)) and
    block_terms (P, N, C, terms)."""
    fixed, exponents = lut_bits.reference_fixed(values, form)
    flags = np.unpackbits(planes, axis=-1, count=values.shape[1], bitorder="little")
    signs = _groups(flags.astype(np.int64) * 2 - 1, columns)
    sums = np.einsum("mcj,pncj->mpnc", _groups(fixed, columns), signs)
    weighed = lut_group.reference_weighed(sums, block_terms, by_group=True)
    y = lut.reference_unfixed(weighed, exponents)
    return y if bias is None else y + bias


REFERENCES = {"lut_bits_group_build": reference_build, "lut_bits_group": reference_query}
