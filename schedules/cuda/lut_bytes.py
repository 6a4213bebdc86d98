"""lut_bytes_query by tensor cores for bytes: several activations at once, on every GPU.

As in `lut_bits.py` a block of threads takes 32 rows and its warps split the inputs. A shift and an AND
leave one bit of each byte of a plane's word, 0 or 128, and are the left operand of one product of 16 rows
and 32 inputs; the 8 columns beside it are 8 activations, of one digit. The lowest digits have no sign,
the highest one has. Sums are whole numbers, 128 times too large, until the end.
"""

import functools
from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend, Knob
from shiftadd_tvm.ops import words
from shiftadd_tvm.ops.lut_bits import DIGIT
from shiftadd_tvm.ops.lut_bytes import BYTES, ROWS
from shiftadd_tvm.schedules.cuda import _results
from shiftadd_tvm.schedules.cuda._instructions import (
    ADD_SHARED,
    LOAD16,
    LOAD16_KEPT,
    MMA_S8,
    MMA_U8,
)

OPS = ("lut_bytes_query",)
KNOBS = {
    "warps": Knob((4, 8, 16), 8),  # of a block: they split the inputs
    "ahead": Knob((1, 2), 1),  # steps whose words are asked for before the first is used
}
REGISTERS = 64  # accumulators of a thread at most
TILES = 2  # of 16 rows, in a row block


def restore(name: str) -> bool:
    """Tell whether an intrinsic of this kernel's has that name: it has none."""
    return False


def schedule(sch: Schedule, backend: Backend, *, warps: int, ahead: int) -> PrimFunc:
    """Return the kernel for the sizes of the function."""
    return kernel(*_results.sizes(sch), warps, ahead, backend.overlap)


def together(units: int, columns: int) -> int:
    """Return how many tiles of planes a warp takes at once: their accumulators fit its registers."""
    most = max(REGISTERS // (columns * 4), 1)
    return max(part for part in range(1, units + 1) if units % part == 0 and part <= most)


@dataclass(frozen=True)
class _Work:
    """The share of a warp: tiles of 16 rows of one plane, for M tokens of D digits."""

    count: int  # planes
    tokens: int
    digits: int

    @property
    def part(self) -> int:
        """Tiles at once; those of a plane follow one another."""
        return together(self.count * TILES, self.columns)

    @property
    def held(self) -> int:
        """Words that a lane holds of one step."""
        return self.part * 4

    @property
    def columns(self) -> int:
        """Products beside one left operand: a tile of tokens and a digit each."""
        return -(-self.tokens // ROWS) * self.digits

    def place(self, tile, column):
        """Return where the 4 sums of a lane begin."""
        return (tile * self.columns + column) * 4


def _load(work: _Work):
    """Return how a lane loads its words of one step."""
    part, held = work.part, work.held

    @T.inline
    def load(a, planes, block, step, first, slot, lane):
        for tile in T.unroll(part):
            place = T.address_of(a[slot * held + tile * 4])
            at = T.meta_var(first + tile)
            words_ = T.address_of(planes[block, step, at // TILES, at % TILES, lane, 0])
            T.evaluate(LOAD16(place, words_))

    return load


def _bits(work: _Work):
    """Return how the words of one step become left operands of inputs 2 q and 2 q + 1 of each 8."""
    part, held = work.part, work.held

    @T.inline
    def bits(w, a, q, slot):
        for low, tile, r in T.grid(2, part, 4):
            places = T.meta_var(T.Cast("uint32", DIGIT - 1 - (q * 2 + low)))
            word = T.meta_var(a[slot * held + tile * 4 + r])
            w[(low * part + tile) * 4 + r] = T.bitwise_and(
                T.shift_left(word, places), T.uint32(0x80808080)
            )

    return bits


def _multiply(work: _Work):
    """Return how a warp adds the products of one step to its sums; there are zeros where no token is."""
    part, tokens, digits, columns = work.part, work.tokens, work.digits, work.columns
    bits = _bits(work)

    @T.inline
    def multiply(acc, a, x, w, bytes_, step, slot, lane):
        for q in T.unroll(BYTES):
            bits(w, a, q, slot)
            for column in T.unroll(columns):
                token = T.meta_var(column // digits * ROWS + lane // 4)
                for i in T.unroll(4):
                    x[i] = T.uint32(0)
                if token < tokens:
                    at = T.address_of(bytes_[token, step, column % digits, q, lane % 4 * BYTES])
                    T.evaluate(LOAD16_KEPT(T.address_of(x[0]), at))
                for low, tile in T.grid(2, part):
                    sums = T.address_of(acc[work.place(tile, column)])
                    left = T.address_of(w[(low * part + tile) * 4])
                    if column % digits == digits - 1:
                        T.evaluate(MMA_S8(sums, left, x[low * 2], x[low * 2 + 1]))
                    else:
                        T.evaluate(MMA_U8(sums, left, x[low * 2], x[low * 2 + 1]))

    return multiply


def _collect(work: _Work):
    """Return how the sums of all warps are added, each of 1 and not of 128."""
    part, tokens, digits, columns = work.part, work.tokens, work.digits, work.columns

    @T.inline
    def collect(sums, acc, v, first, lane):
        for tile, column, half, i in T.grid(part, columns, 2, 2):
            token = T.bind(column // digits * ROWS + lane % 4 * 2 + i)
            if token < tokens:
                v[0] = acc[work.place(tile, column) + half * 2 + i]
                if column % digits == digits - 1:
                    v[0] = T.Cast("uint32", T.shift_right(T.Cast("int32", v[0]), T.int32(DIGIT - 1)))
                else:
                    v[0] = T.shift_right(v[0], T.uint32(DIGIT - 1))
                at = T.meta_var(first + tile)
                row = T.meta_var(at % TILES * 16 + half * 8 + lane // 4)
                place = T.address_of(sums[token, at // TILES, column % digits, row])
                T.evaluate(ADD_SHARED(place, v[0]))

    return collect


@functools.cache
def kernel(
    bytes_shape: tuple[int, ...],
    planes_shape: tuple[int, ...],
    plane_width: int,
    row_width: int,
    outputs: int,
    biased: bool,
    warps: int,
    ahead: int,
    overlap: bool = False,
) -> PrimFunc:
    """Return the function of bytes (M, S, D, 4, 16), scale, planes, terms of both, (bias,) y (M, N)."""
    tokens, digits = bytes_shape[0], bytes_shape[2]
    blocks, steps, count = planes_shape[:3]
    threads, turns = 32 * warps, -(-steps // warps)
    ahead = min(ahead, turns)
    work = _Work(count, tokens, digits)
    load, multiply, collect = _load(work), _multiply(work), _collect(work)
    part, held, columns = work.part, work.held, work.columns
    results = _results.Results(tokens, count, digits, words.ROWS, outputs, threads, False, biased)
    clear, finish = _results.clear(results), _results.finish(results)
    ask = _results.ask(overlap, planes_shape)

    @T.inline
    def body(bytes_, scale, planes, plane_terms, row_terms, bias, y):
        block = T.launch_thread("blockIdx.x", blocks)
        tx = T.launch_thread("threadIdx.x", threads)
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1)  # as in lut_bits.py
        sums = T.alloc_buffer(results.shape, "uint32", scope="shared")
        acc = T.alloc_buffer((part * columns * 4,), "uint32", scope="local")
        a = T.alloc_buffer((ahead * held,), "uint32", scope="local")
        x = T.alloc_buffer((4,), "uint32", scope="local")
        w = T.alloc_buffer((2 * held,), "uint32", scope="local")
        v = T.alloc_buffer((1,), "uint32", scope="local")
        ask(planes, block)
        clear(sums, tx)
        for group in T.serial(count * TILES // part):
            for i in T.unroll(part * columns * 4):
                acc[i] = T.uint32(0)
            for turn in T.serial(-(-turns // ahead)):
                for slot in T.unroll(ahead):
                    step = T.meta_var((turn * ahead + slot) * warps + tx // 32)
                    if step < steps:
                        load(a, planes, block, step, group * part, slot, tx % 32)
                for slot in T.unroll(ahead):
                    step = T.meta_var((turn * ahead + slot) * warps + tx // 32)
                    if step < steps:
                        multiply(acc, a, x, w, bytes_, step, slot, tx % 32)
            collect(sums, acc, v, group * part, tx % 32)
        finish(sums, scale, plane_terms, row_terms, bias, y, block * words.ROWS, tx)

    shapes = _results.shapes(bytes_shape, digits, planes_shape, plane_width, row_width, outputs)
    return _results.function("lut_bytes_query", body, shapes, biased, overlap)
