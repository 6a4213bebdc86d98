"""lut_bits_group by binary tensor cores: the sums of groups of 128 or 256 inputs, each with a scale.

A block of threads takes 32 rows. In a turn each warp takes a step of 256 inputs: the tensor cores give
a group's sums of bits, which are shifted to their places and added, and go into shared memory as whole
numbers. Then all threads scale them, by shifts, and one thread a row adds them in order. The words of
the next turn are asked for before.
"""

import functools
from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP, lut, words
from shiftadd_tvm.ops.lut_bits import DIGIT
from shiftadd_tvm.ops.shift import apply_terms, shift_whole
from shiftadd_tvm.schedules.cuda._instructions import (
    ADD_ACROSS,
    ADD_WIDE,
    LOAD16,
    MMA_B1,
    MMA_B1_HALF,
)

OPS = ("lut_bits_group",)
WARPS = 16
SHARED = 40 << 10  # bytes of sums at most, as whole numbers and scaled
TOKENS = 4  # of a block at most: more are blocks of their own
STEP = 256  # inputs that a warp takes at once
TILES = 2  # of 16 rows, in a row block


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel for the sizes of the function."""
    bits, scale, planes, group_terms, *bias, y = sch.mod["main"].params
    shape = lambda buffer: tuple(int(size) for size in buffer.shape)
    return kernel(shape(bits), shape(planes), shape(group_terms), int(y.shape[1]), bool(bias))


@dataclass(frozen=True)
class _Work:
    """What a block does in a turn: a step a warp, `halves` groups a step."""

    tokens: int
    digits: int
    count: int  # planes
    groups: int
    terms: int
    steps: int
    halves: int

    @property
    def warps(self) -> int:
        """Warps of a block: their sums fit shared memory, and a thread adds each row's."""
        room = SHARED // (self.tokens * self.halves * self.count * words.ROWS * 8)
        return max(self.tokens, min(WARPS, room, self.steps))

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @property
    def parts(self) -> int:
        """Groups of a turn."""
        return self.warps * self.halves


def _load(work: _Work):
    """Return how a lane loads its words of one step: of all planes."""
    steps, count = work.steps, work.count

    @T.inline
    def load(a, planes, block, step, lane):
        if step < steps:
            for p in T.unroll(count):
                for h in T.unroll(TILES):
                    place = T.address_of(a[(p * TILES + h) * 4])
                    T.evaluate(LOAD16(place, T.address_of(planes[block, step, p, h, lane, 0])))

    return load


def _multiply(work: _Work):
    """Return how a warp sums the products of one step of one token and plane: acc[h, half, d, 4]."""
    digits, halves = work.digits, work.halves
    size = TILES * halves * digits * 4

    @T.inline
    def multiply(acc, a, b, p):
        for i in T.unroll(size):
            acc[i] = T.uint32(0)
        for h, d in T.grid(TILES, digits):
            left = T.meta_var((p * TILES + h) * 4)
            if halves == 1:
                sums = T.address_of(acc[(h * digits + d) * 4])
                T.evaluate(MMA_B1(sums, T.address_of(a[left]), b[d * 2], b[d * 2 + 1]))
            else:
                for half in T.unroll(2):
                    sums = T.address_of(acc[((h * 2 + half) * digits + d) * 4])
                    words_ = T.address_of(a[left + half * 2])
                    T.evaluate(MMA_B1_HALF(sums, words_, b[d * 2 + half]))

    return multiply


def _collect(work: _Work):
    """Return how the sums of all bits become one whole number a row and group, in shared memory."""
    digits, halves = work.digits, work.halves

    @T.inline
    def collect(sums, acc, v, m, p, warp, lane):
        for h, half, upper in T.grid(TILES, halves, 2):
            v[0] = T.uint32(0)
            for d in T.unroll(digits):
                at = T.meta_var(((h * halves + half) * digits + d) * 4 + upper * 2)
                place = T.bind(T.Cast("uint32", lane % 4 * 2 + d * DIGIT))
                v[1] = T.shift_left(acc[at + 1], place + T.uint32(1))
                if d == digits - 1:
                    v[1] = T.Select(lane % 4 == 3, T.uint32(0) - v[1], v[1])  # the sign
                v[0] = v[0] + T.shift_left(acc[at], place) + v[1]
            T.evaluate(ADD_ACROSS(T.address_of(v[0]), T.uint32(1)))
            T.evaluate(ADD_ACROSS(T.address_of(v[0]), T.uint32(2)))
            if lane % 4 == 0:
                sums[m, warp * halves + half, p, h * 16 + upper * 8 + lane // 4] = v[0]

    return collect


def _weigh(work: _Work):
    """Return how all threads scale the whole numbers of a turn."""
    count, parts, terms, rows = work.count, work.parts, work.terms, words.ROWS
    items, threads, groups = work.tokens * parts * count * rows, work.threads, work.groups

    @T.inline
    def weigh(scaled, sums, wide, f, scale, group_terms, block, first, turn, tx):
        for z in T.unroll(-(-items // threads)):
            item = T.bind(z * threads + tx)
            part = T.bind(item // (rows * count) % parts)
            group = T.bind(turn * parts + part)
            if item < items and group < groups:
                m = T.meta_var(item // (rows * count * parts))
                p = T.meta_var(item // rows % count)
                offset = T.bind(T.uint32(0) - scale[first + m, 1 + group])
                wide[0] = T.int64(0)
                found = T.bind(sums[m, part, p, item % rows])
                T.evaluate(ADD_WIDE(T.address_of(wide[0]), T.Cast("int32", found), T.uint32(1)))
                T.evaluate(ADD_WIDE(T.address_of(wide[0]), T.Cast("int32", offset), T.uint32(0)))
                f[0] = T.Cast("float32", wide[0])
                f[1] = apply_terms(
                    f[0],
                    [group_terms[block, p, group, t, item % rows] for t in range(terms)],
                    shift_whole,
                )
                scaled[m, part, p, item % rows] = f[1]

    return weigh


def _add(work: _Work):
    """Return how a thread adds what a turn gave for its row, in order."""
    rows, tokens, parts, groups, count = words.ROWS, work.tokens, work.parts, work.groups, work.count

    @T.inline
    def add(total, scaled, turn, tx):
        if tx < tokens * rows:
            for part in T.serial(parts):
                if turn * parts + part < groups:
                    for p in T.unroll(count):
                        total[0] = total[0] + scaled[tx // rows, part, p, tx % rows]

    return add


@functools.cache
def kernel(
    bits_shape: tuple[int, ...],
    planes_shape: tuple[int, ...],
    terms_shape: tuple[int, ...],
    outputs: int,
    biased: bool,
) -> PrimFunc:
    """Return the function of bits (M, W, 8 D), scale, planes, group terms, (bias,) y (M, N)."""
    digits = bits_shape[2] // DIGIT
    tokens = max(m for m in range(1, TOKENS + 1) if bits_shape[0] % m == 0)
    blocks, steps, count = planes_shape[:3]
    groups, terms = terms_shape[2:4]
    halves = 1 if groups == steps else 2
    work = _Work(tokens, digits, count, groups, terms, steps, halves)
    warps, threads, rows = work.warps, work.threads, words.ROWS
    load, multiply, collect = _load(work), _multiply(work), _collect(work)
    parts, weigh, add, turns = work.parts, _weigh(work), _add(work), -(-steps // warps)

    @T.inline
    def body(bits, scale, planes, group_terms, bias, y):
        block = T.launch_thread("blockIdx.x", blocks)
        share = T.launch_thread("blockIdx.y", bits_shape[0] // tokens)
        first = T.meta_var(share * tokens)
        tx = T.launch_thread("threadIdx.x", threads)
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1)  # as in lut_bits.py
        sums = T.alloc_buffer((tokens, parts, count, rows), "uint32", scope="shared")
        scaled = T.alloc_buffer((tokens, parts, count, rows), "float32", scope="shared")
        a = T.alloc_buffer((count * TILES * 4,), "uint32", scope="local")
        acc = T.alloc_buffer((TILES * halves * digits * 4,), "uint32", scope="local")
        b = T.alloc_buffer((2 * digits,), "uint32", scope="local")
        v = T.alloc_buffer((2,), "uint32", scope="local")
        wide = T.alloc_buffer((1,), "int64", scope="local")
        f = T.alloc_buffer((2,), "float32", scope="local")
        total = T.alloc_buffer((1,), "float32", scope="local")
        total[0] = T.float32(0)
        load(a, planes, block, tx // 32, tx % 32)
        for turn in T.serial(turns):
            step = T.bind(turn * warps + tx // 32)
            if step < steps:
                for m in T.unroll(tokens):
                    for d, r in T.grid(digits, 2):
                        b[d * 2 + r] = bits[
                            first + m, step * 8 + tx % 4 + 4 * r, d * DIGIT + tx % 32 // 4
                        ]
                    for p in T.unroll(count):
                        multiply(acc, a, b, p)
                        collect(sums, acc, v, m, p, tx // 32, tx % 32)
            load(a, planes, block, step + warps, tx % 32)
            T.tvm_storage_sync("shared")
            weigh(scaled, sums, wide, f, scale, group_terms, block, first, turn, tx)
            T.tvm_storage_sync("shared")
            add(total, scaled, turn, tx)
            T.tvm_storage_sync("shared")
        if tx < tokens * rows and block * rows + tx % rows < outputs:
            f[0] = lut.unfixed(total[0], scale[first + tx // rows, 0])
            if biased:
                f[0] = f[0] + bias[block * rows + tx % rows]
            y[first + tx // rows, block * rows + tx % rows] = f[0]

    return _function(body, bits_shape, planes_shape, terms_shape, outputs, biased)


def _function(body, bits_shape, planes_shape, terms_shape, outputs, biased):
    tokens, scale_shape = bits_shape[0], (bits_shape[0], 1 + terms_shape[2])
    if biased:
        return _with_bias(body, bits_shape, planes_shape, terms_shape, outputs)

    @T.prim_func(s_tir=True, private=True)
    def plain(
        bits: T.Buffer(bits_shape, "uint32"),
        scale: T.Buffer(scale_shape, "uint32"),
        planes: T.Buffer(planes_shape, "uint32"),
        group_terms: T.Buffer(terms_shape, "uint8"),
        y: T.Buffer((tokens, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "lut_bits_group"})
        body(bits, scale, planes, group_terms, None, y)

    return plain


def _with_bias(body, bits_shape, planes_shape, terms_shape, outputs):
    tokens, scale_shape = bits_shape[0], (bits_shape[0], 1 + terms_shape[2])

    @T.prim_func(s_tir=True, private=True)
    def with_bias(
        bits: T.Buffer(bits_shape, "uint32"),
        scale: T.Buffer(scale_shape, "uint32"),
        planes: T.Buffer(planes_shape, "uint32"),
        group_terms: T.Buffer(terms_shape, "uint8"),
        bias: T.Buffer((outputs,), "float32"),
        y: T.Buffer((tokens, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "lut_bits_group"})
        body(bits, scale, planes, group_terms, bias, y)

    return with_bias
