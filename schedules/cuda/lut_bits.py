"""lut_bits_query by binary tensor cores: AND, population count, shift and add; sm_80 to sm_90.

A block of threads takes 32 rows; its warps split the inputs. Words of the planes go into the tensor
cores as they are stored, as 16 rows of 256 bits; the 8 columns beside them are the 8 bits of a digit of
the activation. Accumulators of all bits are shifted to their places and added at the end: whole numbers
throughout, so the order of warps does not matter. On newer GPUs the compiler emulates the instruction.
"""

import functools
from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend, Knob
from shiftadd_tvm.ops import words
from shiftadd_tvm.ops.lut_bits import DIGIT
from shiftadd_tvm.schedules.cuda import _results
from shiftadd_tvm.schedules.cuda._instructions import ADD_ACROSS, ADD_SHARED, LOAD16, MMA_B1

OPS = ("lut_bits_query",)
KNOBS = {
    "warps": Knob((4, 8, 16), 16),  # of a block: they split the inputs
    "ahead": Knob((1, 2, 4), 2),  # steps whose words are asked for before the first is used
}
REGISTERS = 96  # accumulators of a thread at most
TILES = 2  # of 16 rows, in a row block


def restore(name: str) -> bool:
    """Tell whether an intrinsic of this kernel's has that name: it has none."""
    return False


def schedule(sch: Schedule, backend: Backend, *, warps: int, ahead: int) -> PrimFunc:
    """Return the kernel for the sizes of the function."""
    return kernel(*_results.sizes(sch), warps, ahead, backend.overlap)


def together(count: int, tokens: int, digits: int) -> int:
    """Return how many planes a warp takes at once: their accumulators fit its registers."""
    most = max(REGISTERS // (TILES * tokens * digits * 4), 1)
    return max(part for part in range(1, count + 1) if count % part == 0 and part <= most)


@dataclass(frozen=True)
class _Work:
    """The share of a warp: `part` planes at once, of 2 tiles of 16 rows, for M tokens of D digits."""

    part: int
    tokens: int
    digits: int

    @property
    def held(self) -> int:
        """Words that a lane holds of one step."""
        return self.part * TILES * 4

    def place(self, p, h, m, d):
        """Return where the 4 sums of a lane begin."""
        return (((p * TILES + h) * self.tokens + m) * self.digits + d) * 4


def _load(work: _Work):
    """Return how a lane loads its words of one step."""
    part, held = work.part, work.held

    @T.inline
    def load(a, planes, block, step, first, slot, lane):
        for p in T.unroll(part):
            for h in T.unroll(TILES):
                place = T.address_of(a[slot * held + (p * TILES + h) * 4])
                words_ = T.address_of(planes[block, step, first + p, h, lane, 0])
                T.evaluate(LOAD16(place, words_))

    return load


def _multiply(work: _Work):
    """Return how a warp adds the products of one step to its sums."""
    part, tokens, digits, held = work.part, work.tokens, work.digits, work.held

    @T.inline
    def multiply(acc, a, b, bits, step, slot, lane):
        for m in T.unroll(tokens):
            for d in T.unroll(digits):
                for r in T.unroll(2):
                    b[r] = bits[m, step * 8 + lane % 4 + 4 * r, d * DIGIT + lane // 4]
                for p in T.unroll(part):
                    for h in T.unroll(TILES):
                        sums = T.address_of(acc[work.place(p, h, m, d)])
                        left = T.address_of(a[slot * held + (p * TILES + h) * 4])
                        T.evaluate(MMA_B1(sums, left, b[0], b[1]))

    return multiply


def _collect(work: _Work):
    """Return how the sums of each bit are shifted to its place and added, of all lanes and warps."""
    part, tokens, digits = work.part, work.tokens, work.digits

    @T.inline
    def collect(sums, acc, v, first, lane):
        for p, h, m, d, half in T.grid(part, TILES, tokens, digits, 2):
            at = T.meta_var(work.place(p, h, m, d) + half * 2)
            place = T.bind(T.Cast("uint32", lane % 4 * 2))
            v[0] = T.shift_left(acc[at], place)
            v[1] = T.shift_left(acc[at + 1], place + T.uint32(1))
            if d == digits - 1:
                v[1] = T.Select(lane % 4 == 3, T.uint32(0) - v[1], v[1])  # the sign
            v[0] = v[0] + v[1]
            T.evaluate(ADD_ACROSS(T.address_of(v[0]), T.uint32(1)))
            T.evaluate(ADD_ACROSS(T.address_of(v[0]), T.uint32(2)))
            if lane % 4 == 0:
                row = T.address_of(sums[m, first + p, d, h * 16 + half * 8 + lane // 4])
                T.evaluate(ADD_SHARED(row, v[0]))

    return collect


@functools.cache
def kernel(
    bits_shape: tuple[int, ...],
    planes_shape: tuple[int, ...],
    plane_width: int,
    row_width: int,
    outputs: int,
    biased: bool,
    warps: int,
    ahead: int,
    overlap: bool = False,
) -> PrimFunc:
    """Return the function of bits (M, W, 8 D), scale, planes, plane and row terms, (bias,) y (M, N)."""
    tokens, digits = bits_shape[0], bits_shape[2] // DIGIT
    blocks, steps, count = planes_shape[:3]
    threads, turns = 32 * warps, -(-steps // warps)
    ahead = min(ahead, turns)
    work = _Work(together(count, tokens, digits), tokens, digits)
    load, multiply, collect = _load(work), _multiply(work), _collect(work)
    part, held = work.part, work.held
    results = _results.Results(tokens, count, digits, words.ROWS, outputs, threads, False, biased)
    clear, finish = _results.clear(results), _results.finish(results)
    ask = _results.ask(overlap, planes_shape)

    @T.inline
    def body(bits, scale, planes, plane_terms, row_terms, bias, y):
        block = T.launch_thread("blockIdx.x", blocks)
        tx = T.launch_thread("threadIdx.x", threads)
        # without this bound the assembler saves registers, and loads come between the products
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1)
        sums = T.alloc_buffer(results.shape, "uint32", scope="shared")
        acc = T.alloc_buffer((held * tokens * digits,), "uint32", scope="local")
        a = T.alloc_buffer((ahead * held,), "uint32", scope="local")
        b = T.alloc_buffer((2,), "uint32", scope="local")
        v = T.alloc_buffer((2,), "uint32", scope="local")
        ask(planes, block)
        clear(sums, tx)
        for group in T.serial(count // part):
            for i in T.unroll(held * tokens * digits):
                acc[i] = T.uint32(0)
            for turn in T.serial(-(-turns // ahead)):
                for slot in T.unroll(ahead):
                    step = T.meta_var((turn * ahead + slot) * warps + tx // 32)
                    if step < steps:
                        load(a, planes, block, step, group * part, slot, tx % 32)
                for slot in T.unroll(ahead):
                    step = T.meta_var((turn * ahead + slot) * warps + tx // 32)
                    if step < steps:
                        multiply(acc, a, b, bits, step, slot, tx % 32)
            collect(sums, acc, v, group * part, tx % 32)
        finish(sums, scale, plane_terms, row_terms, bias, y, block * words.ROWS, tx)

    shapes = _results.shapes(bits_shape, digits, planes_shape, plane_width, row_width, outputs)
    return _results.function("lut_bits_query", body, shapes, biased, overlap)
