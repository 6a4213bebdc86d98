"""lut_tables_query by shuffles: tables of 5 inputs lie across the lanes of a warp; every GPU.

A lane owns rows; 5 bits of one say which lane holds the sum to add. It is the look-up and addition
itself: an index (shifts), a look-up (shuffle), an addition, for each 5 weights.
"""

import functools

from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend, Knob
from shiftadd_tvm.ops import words
from shiftadd_tvm.ops.lut_bits import GROUP, GROUPS
from shiftadd_tvm.schedules.cuda import _results
from shiftadd_tvm.schedules.cuda._instructions import ADD_SHARED, ADD_SHUFFLED, LOAD16

OPS = ("lut_tables_query",)
DIGITS = 2
THREADS = 1024  # of a multiprocessor at least: with more, one has too few registers
ACCUMULATORS = 32  # of a thread at most: more spill
KNOBS = {
    "warps": Knob((4, 8, 16), 8),  # of a block: they split the inputs
    "shared": Knob((1, 2, 4, 8), 4),  # row blocks that share the loads of a table
}


def restore(name: str) -> bool:
    """Tell whether an intrinsic of this kernel's has that name: it has none."""
    return False


def schedule(sch: Schedule, backend: Backend, *, warps: int, shared: int) -> PrimFunc:
    """Return the kernel for the sizes of the function."""
    return kernel(*_results.sizes(sch), warps, shared, backend.overlap)


def _index(w, at, g):
    """Return the index of group g in the words w[at .. at + 3]; its higher bits do not matter."""
    word, place = g * GROUP // words.BITS, g * GROUP % words.BITS
    last = words.STEP["lanes"] - 1
    low = T.shift_right(w[at + word], T.Cast("uint32", place))
    over = T.Cast("uint32", (words.BITS - place) % words.BITS)
    high = T.shift_left(w[at + T.min(word + 1, last)], over)
    within = T.Or(place <= words.BITS - GROUP, word == last)
    return T.Select(within, low, T.bitwise_or(low, high))


def _step(tokens: int, shared: int, blocks: int):
    """Return how a warp adds what one step of a plane holds for `shared` row blocks."""

    @T.inline
    def step(acc, w, v, tables, planes, first, s, p, lane):
        for r in T.unroll(shared):
            for i in T.unroll(4):
                w[r * 4 + i] = T.uint32(0)
            if first + r < blocks:
                T.evaluate(
                    LOAD16(T.address_of(w[r * 4]), T.address_of(planes[first + r, s, p, lane, 0]))
                )
        for m in T.unroll(tokens):
            for g in T.unroll(GROUPS):
                v[0] = tables[m, s, g, lane]
                for r in T.unroll(shared):
                    T.evaluate(
                        ADD_SHUFFLED(T.address_of(acc[m * shared + r]), v[0], _index(w, r * 4, g))
                    )

    return step


@functools.cache
def kernel(
    tables_shape: tuple[int, ...],
    planes_shape: tuple[int, ...],
    plane_width: int,
    row_width: int,
    outputs: int,
    biased: bool,
    warps: int,
    shared: int,
    overlap: bool = False,
) -> PrimFunc:
    """Return the function of tables (M, S, 26, 32), scale, planes, terms, (bias,) y (M, N)."""
    tokens, steps = tables_shape[:2]
    blocks, count = planes_shape[0], planes_shape[2]
    shared = min(shared, max(ACCUMULATORS // tokens, 1))
    rows, threads = shared * words.ROWS, 32 * warps
    results = _results.Results(tokens, count, DIGITS, rows, outputs, threads, True, biased)
    clear, finish = _results.clear(results), _results.finish(results)
    ask = _results.ask(overlap, planes_shape, shared)
    step = _step(tokens, shared, blocks)

    @T.inline
    def body(tables, scale, planes, plane_terms, row_terms, bias, y):
        block = T.launch_thread("blockIdx.x", -(-blocks // shared))
        tx = T.launch_thread("threadIdx.x", threads)
        # without this bound the assembler aims at more blocks and spills
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", THREADS // threads)
        sums = T.alloc_buffer(results.shape, "uint32", scope="shared")
        acc = T.alloc_buffer((tokens * shared,), "uint32", scope="local")
        w = T.alloc_buffer((shared * 4,), "uint32", scope="local")
        v = T.alloc_buffer((1,), "uint32", scope="local")
        ask(planes, block * shared)
        clear(sums, tx)
        for p in T.serial(count):
            for i in T.unroll(tokens * shared):
                acc[i] = T.uint32(0)
            for turn in T.serial(-(-steps // warps)):
                at = T.bind(turn * warps + tx // 32)
                if at < steps:
                    step(acc, w, v, tables, planes, block * shared, at, p, tx % 32)
            for m, r in T.grid(tokens, shared):
                place = T.address_of(sums[m, p, 0, r * words.ROWS + tx % 32])
                T.evaluate(ADD_SHARED(place, acc[m * shared + r]))
        finish(sums, scale, plane_terms, row_terms, bias, y, block * rows, tx)

    shapes = _results.shapes(tables_shape, DIGITS, planes_shape, plane_width, row_width, outputs)
    return _results.function("lut_tables_query", body, shapes, biased, overlap)
