"""lut: a binary-coded matrix times activations by table look-up and addition, in exact integers.

    fix     q[m, k] = x[m, k] / 2^e[m], rounded: whole numbers below 2^bits, one exponent a row
    build   tables[m, g, i] = sum_j (bit j of i agrees with the sign of q[m, 4 g + j] ? |q| : 0)
    query   y[m, n] = 2^e · r[n] · sum_p c[p] · (2 sum_g tables[m, g, nibble g of row n] - sum_k |q|)

All 16 signed sums of 4 inputs have one parity: half of (sum + sum of |q|) loses nothing, needs a bit
less, and is never negative. So it is cut into unsigned digits of 7 bits, two of which still fit a
byte when added: half of the adds happen in bytes, the rest in 16 bits, exactly, over a whole chunk of
steps (`planes.py`). Every order of summation gives the same integer.

c and r are sums of powers of two, applied by `shift`; the column scales s and the rotation have been
applied to x before, so one table serves every plane and every linear that reads x.

The look-up is written as a reduction over all 16 entries of [nibble == i] · tables[i]: affine in
every index, the same value, and the form that `tensorize` can match. No schedule may compile it as
it stands; each replaces it by a real look-up. Data is unsigned throughout: `tensorize` widens a
Relax function's int32 arithmetic to int64.
"""

from dataclasses import dataclass

import numpy as np
from tvm import te
from tvm.tirx import Select, const, nearbyint, reinterpret
from tvm.tirx import abs as absolute

from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.ops.planes import ENTRIES, GROUP
from shiftadd_tvm.ops.shift import (
    FRACTION_BITS,
    SIGN_BIT,
    Array,
    apply_terms,
    reference_shift,
    reference_terms,
    shift,
    shift_whole,
)
from shiftadd_tvm.powers import EXPONENT_BIAS

NAN_BITS = 0x7FC00000
NOT_FINITE = 255  # as a row's exponent: it held Inf, NaN, or more than `shift` reaches


@dataclass(frozen=True)
class Format:
    """How activations are held: magnitudes below 2^bits, table entries as digits of a byte each."""

    name: str
    bits: int
    digit_bits: tuple[int, ...]  # lowest first

    @property
    def digits(self) -> list[tuple[int, int]]:
        """The (place, bits) of each digit."""
        return [(sum(self.digit_bits[:i]), bits) for i, bits in enumerate(self.digit_bits)]

    @property
    def fields(self) -> tuple[int, int]:
        """The exponent fields of a peak below 2^(field - 126) for which ±(field - 126 - bits) is
        an exponent that `shift` takes."""
        return 126 - EXPONENT_BIAS + self.bits, 126 + EXPONENT_BIAS + self.bits


# an entry is at most 4 (2^bits - 1): 14 bits, or 8
FORMATS = {f.name: f for f in (Format("int16", 12, (7, 7)), Format("int8", 6, (8,)))}
BY_DIGITS = {len(form.digit_bits): form for form in FORMATS.values()}  # as tables show them


def _u32(number: int):
    return const(number, "uint32")


def fixed(values, form: Format):
    """Return the stage q (M, K), int16 or int32, and m -> the exponent e + 64 of a row, uint32."""
    rows, inputs = values.shape[0], int(values.shape[1])
    dtype = "int16" if form.bits < 16 else "int32"
    k = te.reduce_axis((0, inputs), "k")
    peak = te.compute((rows,), lambda m: te.max(magnitude(values[m, k]), axis=k), name="peak")
    field = te.compute((rows,), lambda m: field_of(peak[m], form), name="field")
    whole = lambda m, k: round_to(values[m, k], field[m], form).astype(dtype)
    exponent = lambda m: exponent_of(field[m], form)
    return te.compute((rows, inputs), whole, name="fixed"), exponent


def magnitude(value):
    """Return the bits of |value|, whose order is that of the magnitudes."""
    return reinterpret("uint32", value) & _u32(0x7FFFFFFF)


def peaks(values, span: int):
    """Return the largest `magnitude` (M, ceil(K / span)), uint32, of each `span` of values (M, K)."""
    rows, inputs = values.shape[0], int(values.shape[1])
    j = te.reduce_axis((0, span), "j")

    def of(m, s):
        k = s * span + j
        size = magnitude(values[m, te.min(k, inputs - 1)])
        return te.max(te.if_then_else(k < inputs, size, _u32(0)), axis=j)

    return te.compute((rows, -(-inputs // span)), of, name="peaks")


def field_of(peak, form: Format):
    """Return the exponent field of a row from the largest `magnitude` in it."""
    return te.max(peak >> _u32(FRACTION_BITS), _u32(form.fields[0]))


def exponent_of(field, form: Format):
    """Return the exponent e + 64 of a row, or `NOT_FINITE`."""
    low, high = (_u32(limit) for limit in form.fields)
    return Select(field <= high, field - low, _u32(NOT_FINITE))


def round_to(value, field, form: Format):
    """Return q = value / 2^e of a row with this `field`, as float32; 0 where it is not finite."""
    high = _u32(form.fields[1])
    whole = nearbyint(shift(value, high - te.min(field, high)))
    top = const(float((1 << form.bits) - 1), "float32")
    kept = te.max(te.min(whole, top), -top)
    return Select(field <= high, kept, const(0.0, "float32"))


def _fixed(values, form: Format, columns: int = 0):
    """Return the stages q (M, K) int16 and scale (M, 1 + C) uint32: the exponent e + 64, and the sum
    of |q| over each of C groups of `columns` inputs (0: one group of all)."""
    rows, inputs = values.shape[0], int(values.shape[1])
    columns = columns or inputs
    groups = -(-inputs // columns)
    held, exponent = fixed(values, form)
    j = te.reduce_axis((0, columns), "j")

    def size(m, c):
        value = lambda k: absolute(held[m, k]).astype("uint32")
        k = c * columns + j
        whole = inputs % columns == 0
        return te.sum(value(k) if whole else te.if_then_else(k < inputs, value(k), _u32(0)), axis=j)

    total = te.compute((rows, groups), size, name="total")
    both = lambda m, i: te.if_then_else(i == 0, exponent(m), total[m, te.max(i - 1, 0)])
    return held, te.compute((rows, 1 + groups), both, name="scale")


def unfixed(value, exponent):
    """Return value · 2^e for a row's exponent + 64, NaN for a row that was not finite."""
    nan = reinterpret("float32", _u32(NAN_BITS))
    return Select(exponent == _u32(NOT_FINITE), nan, shift(value, exponent))


def fix(values, form: Format):
    """Return fixed (n, 8 KB) int16, q and behind it zeros up to whole steps, and exponent (n, 1) uint32,
    e + 64, of values (n, K) float32: what prefill multiplies with."""
    rows, inputs = values.shape[0], int(values.shape[1])
    held, exponent = fixed(values, form)
    width = order.steps(inputs) * order.STEP
    if width > inputs:
        inside = lambda m, k: te.if_then_else(k < inputs, held[m, k], const(0, "int16"))
        held = te.compute((rows, width), inside, name="padded")
    return [held, te.compute((rows, 1), lambda m, _: exponent(m), name="exponent")]


def rounded(values, form: Format):
    """Return values (n, K) float32 as the look-ups hold them: what prefill multiplies with where scales
    stand inside its sums."""
    held, scale = _fixed(values, form)
    back = lambda m, k: unfixed(held[m, k].astype("float32"), scale[m, 0])
    return te.compute(values.shape, back, name="rounded")


def build(values, form: Format, columns: int = 0):
    """Return tables (M, KB, 2, digits, 16) uint8 and scale (M, 1 + C) uint32 of values (M, K) float32;
    scale holds the exponent e + 64 and the sum of |q| over each of C groups of `columns` inputs."""
    rows, inputs = values.shape[0], int(values.shape[1])
    length, count = order.steps(inputs), len(form.digit_bits)
    held, scale = _fixed(values, form, columns)
    zero = const(0, "int16")

    def padded(m, k):
        whole = inputs == length * order.STEP
        return held[m, k] if whole else te.if_then_else(k < inputs, held[m, k], zero)

    # where all negative ones are chosen and no positive one: from there each +1 adds its q
    lowest = te.compute(
        (rows, length * 2),
        lambda m, g: sum(-te.min(padded(m, g * GROUP + j), zero) for j in range(GROUP)),
        name="lowest",
    )

    def digit(m, s, half, d, entry):
        value, g = lowest[m, s * 2 + half], s * 2 + half
        for j in range(GROUP):
            chosen = ((entry >> j) & 1) == 1
            value = value + Select(chosen, padded(m, g * GROUP + j), zero)
        result = zero
        for index, (place, bits) in reversed(list(enumerate(form.digits))):
            cut = (value >> const(place, "int16")) & const((1 << bits) - 1, "int16")
            result = cut if index == count - 1 else te.if_then_else(d == index, cut, result)
        return result.astype("uint8")

    return [te.compute((rows, length, 2, count, ENTRIES), digit, name="tables"), scale]


def query(tables, scale, planes, plane_terms, row_terms, outputs: int, form: Format, bias=None):
    """Return y (M, N) float32 from the results of `build` and planes in packed order (NB, P, KB,
    L / 4), plane_terms (NB, P, <=3): c of each row block, row_terms (<=2, NB L), bias (N,)."""
    rows = tables.shape[0]
    blocks, count, length, lanes = (int(size) for size in planes.shape)
    parts = order.chunks(length * order.STEP)
    chunk = te.reduce_axis((0, parts), "chunk")
    step = te.reduce_axis((0, length // parts), "step")
    half = te.reduce_axis((0, 2), "half")
    entry = te.reduce_axis((0, ENTRIES), "entry")

    def looked_up(m, b, p, v, i):
        s = chunk * (length // parts) + step
        index = order.field(planes[b, p, s, i], v, half * GROUP, ENTRIES - 1)
        value = entry_value(tables, form, m, s, half, entry)
        chosen = Select(index == entry.astype("uint32"), value, _u32(0))
        return te.sum(chosen, axis=[chunk, step, half, entry])

    sums = te.compute((rows, blocks, count, order.VIEWS, lanes), looked_up, name="sums")

    # a stage of its own: expressions that nest would repeat the sums in every guard of every term
    signed = te.compute(
        (rows, blocks, count, order.VIEWS, lanes),
        lambda m, *at: centred(sums(m, *at), scale[m, 1]),
        name="signed",
    )
    totals = sum_planes(signed, plane_terms, shift_whole)
    scaled = te.compute(
        totals.shape, lambda m, *at: unfixed(totals(m, *at), scale[m, 0]), name="scaled"
    )
    return scale_rows(by_row(scaled), (rows, outputs), row_terms, bias)


def entry_value(tables, form: Format, m, step, half, entry):
    """Return an entry as uint32: the sum of its digits, each at its place."""
    value = None
    for d, (place, _) in enumerate(form.digits):
        digit = tables[m, step, half, d, entry].astype("uint32")
        digit = digit << _u32(place) if place else digit
        value = digit if value is None else value + digit
    return value


def centred(found, offset):
    """Return 2 · found - offset as float32, for a sum of table entries and of |q|, uint32.

    By hand: TVM takes unsigned numbers for ones that never wrap, and int32 would be widened.
    """
    double = found + found
    size = Select(double >= offset, double - offset, offset - double)
    sign = Select(double >= offset, _u32(0), _u32(SIGN_BIT))
    return reinterpret("float32", reinterpret("uint32", size.astype("float32")) | sign)


def sum_planes(sums, plane_terms, shift=shift):
    """Return the stage sum_p c[p] · sums[m, b, p, v, i], c by shifts and adds: (M, NB, 4, L / 4)."""
    rows, blocks, count, views, lanes = sums.shape
    terms = int(plane_terms.shape[2])

    def total(m, b, v, i):
        scaled = [
            apply_terms(sums[m, b, p, v, i], [plane_terms[b, p, t] for t in range(terms)], shift)
            for p in range(int(count))
        ]
        return sum(scaled[1:], scaled[0])

    return te.compute((rows, blocks, views, lanes), total, name="totals")


def by_row(totals):
    """Return (m, n) -> totals (M, NB, 4, L / 4) of row n."""
    views, lanes = (int(size) for size in totals.shape[2:])
    rows = views * lanes
    return lambda m, n: totals[m, n // rows, n % rows // lanes, n % lanes]


def scale_rows(value, shape, row_terms, bias):
    """Return y[m, n] = r[n] · value(m, n) (+ bias[n]), r by shifts and adds."""
    terms = int(row_terms.shape[0])

    def scaled(m, n):
        y = apply_terms(value(m, n), [row_terms[t, n] for t in range(terms)])
        return y if bias is None else y + bias[n]

    return te.compute(shape, scaled, name="y")


def reference_moved(values: Array, form: Format) -> tuple[Array, Array]:
    """Return x / 2^e (M, K) float32, 0 in a row that is not finite, and the exponent of each row + 64,
    or `NOT_FINITE`, int64 (M,)."""
    low, high = form.fields
    peak = (np.asarray(values, np.float32).view(np.uint32) & 0x7FFFFFFF).max(axis=1)
    field = np.maximum(peak >> FRACTION_BITS, low).astype(np.int64)
    finite = field <= high
    clean = np.where(finite[:, None], values, np.float32(0)).astype(np.float32)
    moved = reference_shift(clean, (high - np.minimum(field, high) - EXPONENT_BIAS)[:, None])
    return moved, np.where(finite, field - low, NOT_FINITE)


def reference_fixed(values: Array, form: Format) -> tuple[Array, Array]:
    """Return q (M, K) int64 and the exponents of `reference_moved`."""
    moved, exponents = reference_moved(values, form)
    top = (1 << form.bits) - 1
    return np.clip(np.rint(moved), -top, top).astype(np.int64), exponents


def reference_unfixed(values: Array, exponents: Array) -> Array:
    """Return values (M, ...) times 2^e of each row's exponent + 64, NaN where it is `NOT_FINITE`."""
    moved = reference_shift(values.astype(np.float32), (exponents - EXPONENT_BIAS)[:, None])
    return np.where((exponents == NOT_FINITE)[:, None], np.float32(np.nan), moved)


def reference_rounded(values: Array, form: Format) -> Array:
    """Return values (n, K) float32 as the look-ups hold them."""
    return reference_unfixed(*reference_fixed(values, form))


def reference_fix(values: Array, form: Format) -> tuple[Array, Array]:
    """Return fixed (n, 8 KB) int16 and exponent (n, 1) uint32 of values (n, K) float32."""
    held, exponents = reference_fixed(values, form)
    padded = np.zeros((len(held), order.steps(held.shape[1]) * order.STEP), np.int16)
    padded[:, : held.shape[1]] = held
    return padded, exponents[:, None].astype(np.uint32)


def reference_build(values: Array, form: Format, columns: int = 0) -> tuple[Array, Array]:
    """Return tables (M, KB, 2, digits, 16) uint8 and scale (M, 1 + C) uint32 of values (M, K)."""
    fixed, exponents = reference_fixed(values, form)
    rows, inputs = fixed.shape
    padded = np.zeros((rows, order.steps(inputs), 2, 1, GROUP), np.int64)
    padded.reshape(rows, -1)[:, :inputs] = fixed
    bits = (np.arange(ENTRIES)[:, None] >> np.arange(GROUP)) & 1
    entries = np.where((bits == 1) == (padded > 0), np.abs(padded), 0).sum(axis=-1)
    digits = [(entries >> place) & ((1 << width) - 1) for place, width in form.digits]
    totals = np.add.reduceat(np.abs(fixed), np.arange(0, inputs, columns or inputs), axis=1)
    scale = np.concatenate([exponents[:, None], totals], axis=1)
    return np.stack(digits, axis=3).astype(np.uint8), scale.astype(np.uint32)


def reference_entries(tables: Array, planes: Array, form: Format) -> Array:
    """Return the entry that each group of each row of each plane reads, int64 (M, P, N, G)."""
    places = np.array([place for place, _ in form.digits])[:, None]
    entries = (tables.astype(np.int64) << places).sum(axis=3).reshape(len(tables), -1, ENTRIES)
    nibbles = np.stack([planes & 15, planes >> 4], axis=-1).reshape(*planes.shape[:2], -1)
    found: Array = entries[:, np.arange(nibbles.shape[-1]), nibbles]
    return found


def reference_query(
    tables: Array,
    scale: Array,
    planes: Array,
    plane_terms: Array,
    row_terms: Array,
    form: Format,
    bias: Array | None = None,
) -> Array:
    """Return y (M, N) float32 from the results of `reference_build`, canonical planes uint8
    (P, N, ceil(K / 8)), plane_terms (P, terms) and row_terms (N, terms)."""
    found = reference_entries(tables, planes, form).sum(axis=-1)
    sums = 2 * found - scale[:, 1:, None].astype(np.int64)
    scaled = reference_terms(sums.astype(np.float32), plane_terms[:, None, :])
    total = scaled.sum(axis=1, dtype=np.float32)
    y = reference_terms(reference_unfixed(total, scale[:, 0].astype(np.int64)), row_terms)
    return y if bias is None else y + bias


REFERENCES = {
    "lut_fix": reference_fix,
    "lut_round": reference_rounded,
    "lut_build": reference_build,
    "lut_query": reference_query,
}
