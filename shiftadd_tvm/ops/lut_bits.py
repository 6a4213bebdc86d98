"""lut_bits: a binary-coded matrix times fixed-point activations, whose sums are exact whole numbers.

    fix     q[m, k] = x[m, k] / 2^e[m], rounded: |q| < 2^(bits - 1), one exponent a row
    query   y[m, n] = 2^e · r[n] · sum_p c[p] · (2 sum_k u[p, n, k] q[m, k] - sum_k q[m, k]),  u in {0, 1}

q is cut into digits of 8 bits, the highest one signed (two's complement): the sums of each are exact in
32 bits whatever their order, so every kernel gives the same numbers. They are put together in 64 bits and
rounded once, to float32. What follows (c, 2^e, r) are shifts and adds of float32, as in `lut.py`.

A query reads the activations in one of three forms (`build`, `build_tables`, and the bytes of
`lut_bytes.py`); what is computed is the same:

    bits    uint32 (M, W, 8 D)       bit i of word [m, w, j]: bit j of q at input 32 w + i
    tables  uint32 (M, S, 26, 32)    entry [m, s, g, i]: sum_j (bit j of i) · q at input 128 s + 5 g + j
"""

from dataclasses import dataclass

import numpy as np
from tvm import te, tirx
from tvm.tirx import const

from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.ops import lut, words
from shiftadd_tvm.ops.shift import Array, reference_terms, shift_whole

DIGIT = 8  # bits of a digit
GROUP = 5  # inputs of one table: its entries lie across the lanes of a warp
SPAN = 128  # inputs of a step of tables: what a lane loads at once
GROUPS = -(-SPAN // GROUP)  # the last one has 3 inputs


@dataclass(frozen=True)
class Format:
    """How activations are held: fixed point of so many bits, the sign among them."""

    name: str
    width: int
    order: str  # of the planes that its kernels read (`words.py`)
    read: str = "bits"  # what they read of an activation: bits, tables or bytes

    @property
    def fixed(self) -> lut.Format:
        """The rounding: magnitudes below 2^(width - 1)."""
        return lut.Format(self.name, self.width - 1, ())

    @property
    def digits(self) -> int:
        """D: digits of a number."""
        return self.width // DIGIT


FORMATS = {
    form.name: form
    for form in (
        Format("fixed16", 16, "fragments"),
        Format("fixed24", 24, "fragments"),
        Format("shuffle16", 16, "lanes", "tables"),
        Format("bytes16", 16, "fragments", "bytes"),
    )
}


def _u32(number: int):
    return const(number, "uint32")


def digit(value, index: int, count: int):
    """Return a digit of an int32 expression as uint32; the highest in two's complement."""
    moved = value >> const(index * DIGIT, "int32")
    cut = moved if index == count - 1 else moved & const((1 << DIGIT) - 1, "int32")
    return cut.astype("uint32")


def _check(inputs: int) -> None:
    """Raise `UnsupportedError` where sums of 16-bit numbers would not fit 32 bits."""
    if inputs >= 1 << 16:
        raise UnsupportedError(
            f"A linear has {inputs} inputs; fixed-point look-ups take fewer than 65536. Compile with "
            "--activations float32."
        )


def _scale(fixed, exponent, form: Format):
    """Return scale (M, 1 + D) uint32: the exponent + 64, and the sum of each digit of a row."""
    rows, inputs = fixed.shape[0], int(fixed.shape[1])
    k = te.reduce_axis((0, inputs), "k")
    value = lambda m, k: fixed[m, k].astype("int32")

    def chosen_digit(m, d):
        chosen = digit(value(m, k), form.digits - 1, form.digits)
        for index in range(form.digits - 1):
            chosen = te.if_then_else(d == index, digit(value(m, k), index, form.digits), chosen)
        return te.sum(chosen, axis=k)

    totals = te.compute((rows, form.digits), chosen_digit, name="totals")
    both = lambda m, i: te.if_then_else(i == 0, exponent(m), totals[m, te.max(i - 1, 0)])
    return te.compute((rows, 1 + form.digits), both, name="scale")


def build(values, form: Format):
    """Return bits (M, W, 8 D) and scale (M, 1 + D), uint32, of values (M, K) float32."""
    fixed, scale = fixed_and_scale(values, form)
    return [bits_of(fixed, form), scale]


def fixed_and_scale(values, form: Format):
    """Return the whole numbers of `lut.fixed` and scale (M, 1 + D) uint32 of values (M, K) float32."""
    _check(int(values.shape[1]))
    fixed, exponent = lut.fixed(values, form.fixed)
    return fixed, _scale(fixed, exponent, form)


def bits_of(fixed, form: Format):
    """Return bits (M, W, 8 D) uint32 of the whole numbers of `lut.fixed`."""
    rows, inputs = fixed.shape[0], int(fixed.shape[1])
    length = words.words(inputs, form.order)
    i = te.reduce_axis((0, words.BITS), "i")
    zero = const(0, "int32")

    def bit(m, w, j):
        k = w * words.BITS + i
        held = fixed[m, te.min(k, inputs - 1)].astype("int32")
        value = held if inputs == length * words.BITS else te.if_then_else(k < inputs, held, zero)
        one = (value >> j.astype("int32")).astype("uint32") & _u32(1)
        return te.sum(one << i.astype("uint32"), axis=i)

    return te.compute((rows, length, DIGIT * form.digits), bit, name="bits")


def build_tables(values, form: Format):
    """Return tables (M, S, 26, 32) and scale (M, 1 + D), uint32, of values (M, K) float32."""
    rows, inputs = values.shape[0], int(values.shape[1])
    fixed, scale = fixed_and_scale(values, form)
    zero = const(0, "int32")

    def entry(m, s, g, i):
        total = zero
        for j in range(GROUP):
            k = s * SPAN + g * GROUP + j
            within = tirx.all(k < inputs, g * GROUP + j < SPAN)
            held = te.if_then_else(within, fixed[m, te.min(k, inputs - 1)].astype("int32"), zero)
            total = total + tirx.Select(((i >> j) & 1) == 1, held, zero)
        return total.astype("uint32")

    shape = (rows, words.steps(inputs, form.order), GROUPS, 1 << GROUP)
    return [te.compute(shape, entry, name="tables"), scale]


def query(bits, scale, planes, plane_terms, row_terms, outputs: int, form: Format, bias=None):
    """Return y (M, N) float32 from the results of `build`, planes in the order of `words.py`,
    plane_terms (NB, P, <=3), row_terms (<=3, 32 NB), bias (N,)."""
    rows, length = bits.shape[0], int(bits.shape[1])
    blocks, count = int(planes.shape[0]), int(planes.shape[2])
    w, j = te.reduce_axis((0, length), "w"), te.reduce_axis((0, DIGIT), "j")

    def found(m, b, p, d, n):
        word = words.word(planes, p, b * words.ROWS + n, w)
        ones = tirx.popcount(word & bits[m, w, d * DIGIT + j]) << j.astype("uint32")
        negative = tirx.all(d == form.digits - 1, j == DIGIT - 1)
        return te.sum(tirx.Select(negative, _u32(0) - ones, ones), axis=[w, j])

    shape = (rows, blocks, count, form.digits, words.ROWS)
    sums = te.compute(shape, found, name="sums")
    return finish(sums, scale, plane_terms, row_terms, outputs, form, bias)


def query_tables(tables, scale, planes, plane_terms, row_terms, outputs, form: Format, bias=None):
    """Return what `query` returns, from the results of `build_tables`."""
    rows, length = tables.shape[0], int(tables.shape[1])
    blocks, count = int(planes.shape[0]), int(planes.shape[2])
    s, g = te.reduce_axis((0, length), "s"), te.reduce_axis((0, GROUPS), "g")

    def found(m, b, p, d, n):
        index = table_index(lambda v: planes[b, s, p, n, v], g)
        return te.sum(tables[m, s, g, index.astype("int32")], axis=[s, g])

    sums = te.compute((rows, blocks, count, 1, words.ROWS), found, name="sums")
    return finish(sums, scale, plane_terms, row_terms, outputs, form, bias)


def table_index(word, g):
    """Return the index of group g: 5 bits of word(0) .. word(3) from bit 5 g on, uint32."""
    begin = g * GROUP
    at, shift = begin // words.BITS, (begin % words.BITS).astype("uint32")
    low = word(at) >> shift
    over = (_u32(words.BITS) - shift) & _u32(words.BITS - 1)
    high = te.if_then_else(
        tirx.all(shift > _u32(words.BITS - GROUP), at < 3), word(te.min(at + 1, 3)) << over, _u32(0)
    )
    return (low | high) & _u32((1 << GROUP) - 1)


def finish(sums, scale, plane_terms, row_terms, outputs: int, form: Format, bias):
    """Return y (M, N) float32 of sums (M, NB, P, D, 32) uint32, or (M, NB, P, 1, 32) of whole numbers."""
    rows, blocks, count, digits, lanes = sums.shape
    # sums of whole numbers already are put together: the offset then is
    one = int(digits) == 1

    def signed(m, b, p, v, i):
        found = lambda d: sums[m, b, p, d, i]
        offset = lambda d: scale[m, 1 + d]
        return whole(found, offset, form.digits, one).astype("float32")

    centred = te.compute((rows, blocks, count, 1, lanes), signed, name="signed")
    totals = lut.sum_planes(centred, plane_terms, shift_whole)
    back = lambda m, *at: lut.unfixed(totals(m, *at), scale[m, 0])
    scaled = te.compute(totals.shape, back, name="scaled")
    return lut.scale_rows(lut.by_row(scaled), (rows, outputs), row_terms, bias)


def whole(found, offset, digits: int, together: bool):
    """Return 2 · sum - offset as int64, of found(d) and offset(d) uint32, digit by digit, lowest
    first; `together`: found(0) is the sum of whole numbers, not of digits."""
    wide = lambda value: value.astype("int32").astype("int64")
    moved = lambda value, d: value << const(d * DIGIT, "int64") if d else value
    total = None
    for d in range(digits):
        sums = const(0, "int64") if together else wide(found(d))
        if together and d == 0:
            sums = wide(found(0))
        part = moved(sums + sums - wide(offset(d)), d)
        total = part if total is None else total + part
    return total


def reference_fixed(values: Array, form: Format) -> tuple[Array, Array]:
    """Return q (M, K) int64 and the exponent of each row + 64 (or `lut.NOT_FINITE`), int64 (M,)."""
    return lut.reference_fixed(values, form.fixed)


def reference_scale(fixed: Array, exponents: Array, form: Format) -> Array:
    """Return scale (M, 1 + D) uint32 of the results of `reference_fixed`."""
    digits = [(fixed >> (d * DIGIT)) & 255 for d in range(form.digits - 1)]
    digits.append(fixed >> ((form.digits - 1) * DIGIT))
    totals = np.stack([digit.sum(axis=1) for digit in digits], axis=1)
    return np.concatenate([exponents[:, None], totals], axis=1).astype(np.int64).astype(np.uint32)


def reference_build(values: Array, form: Format) -> tuple[Array, Array]:
    """Return bits (M, W, 8 D) and scale (M, 1 + D), uint32, of values (M, K)."""
    fixed, exponents = reference_fixed(values, form)
    rows, inputs = fixed.shape
    padded = np.zeros((rows, words.words(inputs, form.order) * words.BITS), np.int64)
    padded[:, :inputs] = fixed
    places = np.arange(form.width)
    flags = (padded.reshape(rows, -1, words.BITS, 1) >> places) & 1  # (M, W, 32, 8 D)
    weights = np.int64(1) << np.arange(words.BITS, dtype=np.int64)
    bits = (flags * weights[:, None]).sum(axis=2).astype(np.uint32)
    return bits, reference_scale(fixed, exponents, form)


def reference_build_tables(values: Array, form: Format) -> tuple[Array, Array]:
    """Return tables (M, S, 26, 32) and scale (M, 1 + D), uint32, of values (M, K)."""
    fixed, exponents = reference_fixed(values, form)
    rows, inputs = fixed.shape
    padded = np.zeros((rows, words.steps(inputs, form.order), GROUPS * GROUP), np.int64)
    spans = np.zeros((rows, padded.shape[1] * SPAN), np.int64)
    spans[:, :inputs] = fixed
    padded[:, :, :SPAN] = spans.reshape(rows, -1, SPAN)
    chosen = (np.arange(1 << GROUP)[:, None] >> np.arange(GROUP)) & 1
    tables = padded.reshape(rows, padded.shape[1], GROUPS, GROUP) @ chosen.T
    return tables.astype(np.uint32), reference_scale(fixed, exponents, form)


def reference_query(
    values: Array,
    planes: Array,
    plane_terms: Array,
    row_terms: Array,
    form: Format,
    bias: Array | None = None,
) -> Array:
    """Return y (M, N) float32 of values (M, K) float32 (not of a form of them), canonical planes uint8
    (P, N, ceil(K / 8)), plane_terms (P, terms) and row_terms (N, terms)."""
    fixed, exponents = reference_fixed(values, form)
    flags = np.unpackbits(planes, axis=-1, count=values.shape[1], bitorder="little")
    signs = flags.astype(np.int64) * 2 - 1
    sums = np.einsum("mk,pnk->mpn", fixed, signs)
    scaled = reference_terms(sums.astype(np.float32), plane_terms[:, None, :])
    total = np.add.accumulate(scaled, axis=1, dtype=np.float32)[:, -1]
    y = reference_terms(lut.reference_unfixed(total, exponents), row_terms)
    return y if bias is None else y + bias


REFERENCES = {
    "lut_bits_build": reference_build,
    "lut_bits_query": reference_query,
    "lut_tables_build": reference_build_tables,
    "lut_tables_query": reference_query,
}
