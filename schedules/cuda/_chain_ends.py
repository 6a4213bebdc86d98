"""How a row in registers (`_chain.py`) becomes what look-ups read: bits, bytes, tables; and its scale."""

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from shiftadd_tvm.ops import lut
from shiftadd_tvm.ops.lut_bits import DIGIT, GROUP, GROUPS, SPAN, Format
from shiftadd_tvm.ops.lut_bytes import BYTES
from shiftadd_tvm.ops.shift import FRACTION_BITS, SIGN_BIT
from shiftadd_tvm.powers import EXPONENT_BIAS
from shiftadd_tvm.schedules.cuda._instructions import (
    ADD_GLOBAL,
    ADD_LANES,
    ADD_SHUFFLED,
    MAX_LANES,
    SWAP_BITS,
)
from shiftadd_tvm.schedules.cuda._runs import HELD, Row

LOWER = (0x0000FFFF, 0x00FF00FF, 0x0F0F0F0F, 0x33333333, 0x55555555)  # places whose bit 16, 8 .. is 0
ROOM = 44 << 10  # bytes of shared memory for whole numbers

Inline = Callable[..., Any]


@T.inline
def largest(x, u, held):
    """Set u[0] to the largest magnitude of a warp's numbers x (held,)."""
    u[0] = T.uint32(0)
    for n in T.unroll(held):
        u[0] = T.max(u[0], lut.magnitude(x[n]))
    T.evaluate(MAX_LANES(T.address_of(u[0])))


@T.inline
def largest_of_row(x, u, row, warp, lane):
    """Set u[0] to the largest magnitude of a row that a block holds."""
    peaks = T.alloc_buffer((32,), "uint32", scope="shared")
    largest(x, u, row.held)
    if lane == 0:
        peaks[warp] = u[0]
    T.tvm_storage_sync("shared")
    u[0] = T.uint32(0)
    if lane < row.warps:
        u[0] = peaks[lane]
    T.evaluate(MAX_LANES(T.address_of(u[0])))


def rounded(row: Row, form: Format) -> Inline:
    """Return how q (row.held,) int32 is set to the whole numbers of x, and u[0] from the row's largest
    magnitude to its field."""
    fixed, short = form.fixed, form.width == 16
    high, top = fixed.fields[1], (1 << fixed.bits) - 1

    @T.inline
    def round_(q, x, u):
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
    def write(scale, q, u, i, warp, lane):
        parts = T.alloc_buffer((digits, 32), "uint32", scope="shared")
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


def added_totals(row: Row, form: Format) -> Inline:
    """Return how scale (M, 1 + D), of zeros, gets a row's exponent and the sums of its digits, where
    runs are apart."""
    digits, fixed = form.digits, form.fixed

    @T.inline
    def write(scale, q, u, i, warp, lane):
        for d in T.unroll(digits):
            u[1] = T.uint32(0)
            for n in T.unroll(row.held):
                u[1] = u[1] + digit(q[n], d, digits)
            T.evaluate(ADD_LANES(T.address_of(u[1])))
            if lane == 0:
                T.evaluate(ADD_GLOBAL(T.address_of(scale[i, 1 + d]), u[1]))
        if warp == 0 and lane == 0:
            scale[i, 0] = lut.exponent_of(u[0], fixed)

    return write


def group_totals(row: Row, form: Format, columns: int, groups: int) -> Inline:
    """Return how scale (M, 1 + C) gets a row's exponent and the sums of its groups of inputs, each of
    which lies in one run of one warp."""
    fixed, each = form.fixed, columns // 32  # of a lane

    @T.inline
    def write(scale, q, u, i, warp, lane):
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
    def write(built, q, u, i, warp, lane):
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


def tables(row: Row, form: Format, steps: int) -> Inline:
    """Return how tables (M, S, 26, 32) are written: a warp those of its own runs, a lane an entry."""
    each = HELD * 32 // SPAN  # steps of a run

    @T.inline
    def write(built, q, u, i, warp, lane):
        found = T.alloc_buffer((1,), "uint32", scope="local")
        for turn, h in T.grid(row.turns, each):
            step = T.bind(row.input(turn * HELD, warp, 0) // SPAN + h)
            if step < steps:
                for group in T.unroll(GROUPS):
                    u[1] = T.uint32(0)
                    for j in T.unroll(GROUP):
                        place = T.meta_var(group * GROUP + j)
                        if place < SPAN:
                            held = T.meta_var(T.Cast("uint32", q[turn * HELD + (h * SPAN + place) // 32]))
                            found[0] = T.uint32(0)
                            T.evaluate(
                                ADD_SHUFFLED(T.address_of(found[0]), held, T.Cast("uint32", place % 32))
                            )
                            if T.bitwise_and(T.shift_right(lane, j), 1) == 1:
                                u[1] = u[1] + found[0]
                    built[i, step, group, lane] = u[1]

    return write


def fits_shared(row: Row) -> bool:
    """Tell whether the whole numbers of a block's inputs have room in the memory that is shared."""
    return row.shared * 4 <= ROOM


def bytes_(row: Row, form: Format, steps: int) -> Inline:
    """Return how bytes (M, S, D, 4, 16) are written: a thread a word."""
    digits, threads = form.digits, 32 * row.block
    words = (1 if row.apart else steps) * digits * BYTES * 4 * BYTES  # of a block

    @T.inline
    def write(built, q, u, i, warp, lane):
        held = T.alloc_buffer((row.shared,), "int32", scope="shared")
        for n in T.unroll(row.held):  # what is behind a row is 0
            held[row.input(n, row.place(warp), lane)] = q[n]
        T.tvm_storage_sync("shared")
        for turn in T.serial(-(-words // threads)):
            word = T.bind(turn * threads + row.place(warp) * 32 + lane)
            if word < words:
                at = T.bind(word % 16)
                part = T.bind(word // 16 % BYTES)
                d = T.bind(word // 64 % digits)
                s = T.bind(word // (64 * digits))
                first = T.meta_var(s * 256 + (at // 4 + 4 * (at % 2)) * 32 + part * 2 + at % 4 // 2)
                u[1] = T.uint32(0)
                for c in T.unroll(BYTES):
                    moved = T.shift_right(held[first + c * DIGIT], T.Cast("int32", d * DIGIT))
                    byte = T.bitwise_and(T.Cast("uint32", moved), T.uint32((1 << DIGIT) - 1))
                    u[1] = T.bitwise_or(u[1], T.shift_left(byte, T.Cast("uint32", c * DIGIT)))
                built[i, row.first(warp) + s, d, part, at] = u[1]

    return write
