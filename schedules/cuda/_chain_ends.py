"""How a row in registers (`_chain.py`) becomes what look-ups read: bits, bytes, tables; and its scale."""

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from shiftadd_tvm.ops import lut
from shiftadd_tvm.ops.lut_bits import DIGIT, GROUP, GROUPS, SPAN, Format
from shiftadd_tvm.ops.lut_bytes import BYTES
from shiftadd_tvm.ops.shift import FRACTION_BITS, SIGN_BIT
from shiftadd_tvm.powers import EXPONENT_BIAS
from shiftadd_tvm.schedules.cuda._chain import Row
from shiftadd_tvm.schedules.cuda._instructions import ADD_LANES, MAX_LANES, SWAP_BITS

LOWER = (0x0000FFFF, 0x00FF00FF, 0x0F0F0F0F, 0x33333333, 0x55555555)  # places whose bit 16, 8 .. is 0
ROOM = 44 << 10  # bytes of shared memory for whole numbers

Inline = Callable[..., Any]


def rounded(row: Row, form: Format) -> Inline:
    """Return how q (row.held,) int32 is set to the whole numbers of x, and u[0] to the row's field; peaks
    (32,) are shared."""
    fixed, short = form.fixed, form.width == 16
    high, top = fixed.fields[1], (1 << fixed.bits) - 1

    @T.inline
    def round_(q, x, u, peaks, warp, lane):
        u[0] = T.uint32(0)
        for n in T.unroll(row.held):
            u[0] = T.max(u[0], lut.magnitude(x[n]))
        T.evaluate(MAX_LANES(T.address_of(u[0])))
        if lane == 0:
            peaks[warp] = u[0]
        T.tvm_storage_sync("shared")
        u[0] = T.uint32(0)
        if lane < row.warps:
            u[0] = peaks[lane]
        T.evaluate(MAX_LANES(T.address_of(u[0])))
        u[0] = lut.field_of(u[0], fixed)
        if short:
            u[1] = T.shift_left(T.uint32(high) - T.min(u[0], T.uint32(high)), T.uint32(23))
            for n in T.unroll(row.held):
                q[n] = _short(x[n], u[1], top)
                if u[0] > T.uint32(high):
                    q[n] = 0
        else:
            for n in T.unroll(row.held):
                q[n] = T.Cast("int32", lut.round_to(x[n], u[0], fixed))

    return round_


def _short(value, moved, top: int):
    """Return `lut.round_to` for numbers below 2^22, int32: `moved` is what is added to an exponent. What
    would be subnormal is 0 or nearly, and rounds to 0 as well; a sum with 1.5 · 2^23 is rounded to a
    whole number, which its lowest bits are."""
    bits = T.reinterpret("uint32", value)
    size = T.bitwise_and(bits, T.uint32(SIGN_BIT - 1)) + moved
    low = T.uint32(EXPONENT_BIAS << FRACTION_BITS)
    scaled = T.bitwise_or(T.max(size, low) - low, T.bitwise_and(bits, T.uint32(SIGN_BIT)))
    whole = T.reinterpret("int32", T.reinterpret("float32", scaled) + T.float32(3 << 22))
    return T.max(T.min(whole - T.int32(0x4B400000), T.int32(top)), T.int32(-top))


def digit(q, d: Any, digits: int):
    """Return digit d of q as uint32; the highest in two's complement."""
    moved = T.shift_right(q, T.Cast("int32", d * DIGIT))
    lower = T.bitwise_and(moved, T.int32((1 << DIGIT) - 1))
    return T.Cast("uint32", T.Select(d == digits - 1, moved, lower))


def totals(row: Row, form: Format) -> Inline:
    """Return how scale (M, 1 + D) gets a row's exponent and the sums of its digits."""
    digits, fixed = form.digits, form.fixed

    @T.inline
    def write(scale, q, u, parts, i, warp, lane):
        for d in T.unroll(digits):
            u[1] = T.uint32(0)
            for n in T.unroll(row.held):
                u[1] = u[1] + digit(q[n], d, digits)
            T.evaluate(ADD_LANES(T.address_of(u[1])))
            if lane == 0:
                parts[d, warp] = u[1]
        T.tvm_storage_sync("shared")
        if warp == 0:
            for d in T.unroll(digits):
                u[1] = T.uint32(0)
                if lane < row.warps:
                    u[1] = parts[d, lane]
                T.evaluate(ADD_LANES(T.address_of(u[1])))
                if lane == 0:
                    scale[i, 1 + d] = u[1]
            if lane == 0:
                scale[i, 0] = lut.exponent_of(u[0], fixed)

    return write


def group_totals(row: Row, form: Format, columns: int, groups: int) -> Inline:
    """Return how scale (M, 1 + C) gets a row's exponent and the sums of its groups of inputs, each of
    which lies in one run of one warp."""
    fixed, each = form.fixed, columns // 32  # of a lane

    @T.inline
    def write(scale, q, u, parts, i, warp, lane):
        for group in T.unroll(row.held // each):
            u[1] = T.uint32(0)
            for n in T.unroll(each):
                u[1] = u[1] + T.Cast("uint32", q[group * each + n])
            T.evaluate(ADD_LANES(T.address_of(u[1])))
            at = T.bind(row.input(group * each, warp, 0) // columns)
            if lane == 0 and at < groups:
                scale[i, 1 + at] = u[1]
        if warp == 0 and lane == 0:
            scale[i, 0] = lut.exponent_of(u[0], fixed)

    return write


def bits(row: Row, form: Format, length: int) -> Inline:
    """Return how bits (M, W, 8 D) are written: the bits of 32 lanes are transposed, two numbers of 16
    bits or one of 24 at a time."""
    width, pair = form.width, 32 // form.width

    @T.inline
    def write(built, q, u, held, i, warp, lane):
        for n in T.unroll(row.held // pair):
            u[1] = T.Cast("uint32", q[n * pair])
            if pair == 2:
                high = T.meta_var(T.Cast("uint32", q[n * pair + 1]))
                u[1] = T.bitwise_or(
                    T.bitwise_and(u[1], T.uint32(0xFFFF)), T.shift_left(high, T.uint32(16))
                )
            for j in T.unroll(5):
                step = T.meta_var(T.shift_right(T.uint32(16), T.Cast("uint32", j)))
                lower = T.meta_var(_lower(j))
                T.evaluate(SWAP_BITS(T.address_of(u[1]), step, lower))
            word = T.bind(row.input(n * pair, warp, 0) // 32 + lane // width)
            if word < length and lane < pair * width:
                built[i, word, lane % width] = u[1]

    return write


def _lower(j: Any):
    """Return LOWER[j]."""
    found = T.uint32(LOWER[-1])
    for index, mask in enumerate(LOWER[:-1]):
        found = T.Select(j == index, T.uint32(mask), found)
    return found


def fits_shared(row: Row) -> bool:
    """Tell whether the whole numbers of a row have room in the memory that is shared."""
    return row.warps * row.held * 32 * 4 <= ROOM


@T.inline
def _put(held, q, row, warp, lane):
    """Share the whole numbers of a row; those behind it are 0."""
    for n in T.unroll(row.held):
        held[row.input(n, warp, lane)] = q[n]
    T.tvm_storage_sync("shared")


def tables(row: Row, form: Format, steps: int) -> Inline:
    """Return how tables (M, S, 26, 32) are written: a warp a table, a lane an entry."""

    @T.inline
    def write(built, q, u, held, i, warp, lane):
        _put(held, q, row, warp, lane)
        for turn in T.serial(-(-steps * GROUPS // row.warps)):
            group = T.bind(turn * row.warps + warp)
            if group < steps * GROUPS:
                u[1] = T.uint32(0)
                for j in T.unroll(GROUP):
                    place = T.bind(group % GROUPS * GROUP + j)
                    k = T.meta_var(group // GROUPS * SPAN + place)
                    if place < SPAN and T.bitwise_and(T.shift_right(lane, j), 1) == 1:
                        if k < row.inputs:
                            u[1] = u[1] + T.Cast("uint32", held[k])
                built[i, group // GROUPS, group % GROUPS, lane] = u[1]

    return write


def bytes_(row: Row, form: Format, steps: int) -> Inline:
    """Return how bytes (M, S, D, 4, 16) are written: a thread a word."""
    digits, threads = form.digits, 32 * row.warps
    words = steps * digits * BYTES * 4 * BYTES

    @T.inline
    def write(built, q, u, held, i, warp, lane):
        _put(held, q, row, warp, lane)
        for turn in T.serial(-(-words // threads)):
            word = T.bind(turn * threads + warp * 32 + lane)
            if word < words:
                at = T.bind(word % 16)
                part = T.bind(word // 16 % BYTES)
                d = T.bind(word // 64 % digits)
                s = T.bind(word // (64 * digits))
                first = T.meta_var(s * 256 + (at // 4 + 4 * (at % 2)) * 32 + part * 2 + at % 4 // 2)
                u[1] = T.uint32(0)
                for c in T.unroll(BYTES):
                    if first + c * DIGIT < row.inputs:
                        moved = T.shift_right(held[first + c * DIGIT], T.Cast("int32", d * DIGIT))
                        byte = T.bitwise_and(T.Cast("uint32", moved), T.uint32((1 << DIGIT) - 1))
                        u[1] = T.bitwise_or(
                            u[1], T.shift_left(byte, T.Cast("uint32", c * DIGIT))
                        )
                built[i, s, d, part, at] = u[1]

    return write
