"""What look-ups on GPUs read of an activation: a block of threads a token, once for all that read it.

First all threads look for the largest magnitude. Then each warp takes 32 inputs at a time, a lane each:
a vote collects a bit of all of them into a word; or the lanes are the entries of the tables of 5 inputs,
which they read one after the other.
"""

import functools

from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP, lut, lut_bits, lut_bits_group, words
from shiftadd_tvm.ops.lut_bits import DIGIT, GROUP, GROUPS, SPAN
from shiftadd_tvm.schedules.cuda._chain_ends import digit
from shiftadd_tvm.schedules.cuda._instructions import ADD_ACROSS, ADD_SHARED, BALLOT, MAX_SHARED

OPS = ("lut_bits_build", "lut_tables_build", "lut_bits_group_build")
THREADS = 1024
WARPS = THREADS // 32


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel for the sizes of the function."""
    function = sch.mod["main"]
    values, built, scale = function.params
    tokens, inputs = (int(size) for size in values.shape)
    sums, steps = int(scale.shape[1]) - 1, int(built.shape[1])
    op = str(function.attrs[OP])
    if op == "lut_bits_group_build":
        form = lut_bits.Format("", int(built.shape[2]), "")
        columns = next(c for c in lut_bits_group.COLUMNS if -(-inputs // c) == sums)
        return bits(tokens, inputs, steps, form, columns)
    form = lut_bits.Format("", sums * DIGIT, "")
    return {"lut_bits_build": bits, "lut_tables_build": tables}[op](tokens, inputs, steps, form)


def _parts(form: lut_bits.Format, inputs: int, held: int):
    """Return how a row's exponent is found, and how an input is rounded, as inlined code; `held` sums
    are kept of a row."""
    fixed = form.fixed

    @T.inline
    def begin(values, state, v, i, tx):
        """Set state[0] to the row's field and state[1 ..], the sums, to 0."""
        if tx < 1 + held:
            state[tx] = T.uint32(0)
        T.tvm_storage_sync("shared")
        v[0] = T.uint32(0)
        for turn in T.serial(-(-inputs // THREADS)):
            if turn * THREADS + tx < inputs:
                v[0] = T.max(v[0], lut.magnitude(values[i, turn * THREADS + tx]))
        T.evaluate(MAX_SHARED(T.address_of(state[0]), v[0]))
        T.tvm_storage_sync("shared")
        v[0] = lut.field_of(state[0], fixed)

    @T.inline
    def end(scale, state, v, i, tx):
        T.tvm_storage_sync("shared")
        if tx == 0:
            scale[i, 0] = lut.exponent_of(v[0], fixed)
            for d in T.serial(held):
                scale[i, 1 + d] = state[1 + d]

    @T.inline
    def read(values, x, q, v, i, k):
        """Set q[0] to the whole number of input k; 0 behind the last one."""
        x[0] = T.float32(0)
        if k < inputs:
            x[0] = values[i, k]
        q[0] = T.Cast("int32", lut.round_to(x[0], v[0], fixed))

    return begin, read, end


@functools.cache
def bits(
    tokens: int, inputs: int, length: int, form: lut_bits.Format, columns: int = 0
) -> PrimFunc:
    """Return the function of values (M, K), bits (M, W, 8 D), scale (M, 1 + D); with `columns` the scale
    (M, 1 + C) holds the sums of groups of so many inputs."""
    digits = form.digits
    held = -(-inputs // columns) if columns else digits
    span = (columns or words.BITS) // words.BITS  # words of a group
    begin, read, end = _parts(form, inputs, held)

    @T.prim_func(s_tir=True, private=True)
    def build(
        values: T.Buffer((tokens, inputs), "float32"),
        bits: T.Buffer((tokens, length, form.width), "uint32"),
        scale: T.Buffer((tokens, 1 + held), "uint32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "lut_bits_build"})
        i = T.launch_thread("blockIdx.x", tokens)
        tx = T.launch_thread("threadIdx.x", THREADS)
        state = T.alloc_buffer((1 + held,), "uint32", scope="shared")
        x = T.alloc_buffer((1,), "float32", scope="local")
        q = T.alloc_buffer((1,), "int32", scope="local")
        v = T.alloc_buffer((3,), "uint32", scope="local")
        sums = T.alloc_buffer((digits,), "uint32", scope="local")
        begin(values, state, v, i, tx)
        for d in T.unroll(digits):
            sums[d] = T.uint32(0)
        for turn in T.serial(-(-length // WARPS)):
            w = T.bind(turn * WARPS + tx // 32)
            if w < length:
                read(values, x, q, v, i, w * 32 + tx % 32)
                if columns > 0:
                    sums[0] = T.Cast("uint32", q[0])
                    for j in T.unroll(5):
                        T.evaluate(ADD_ACROSS(T.address_of(sums[0]), T.uint32(1 << j)))
                    if tx % 32 == 0 and w // span < held:
                        T.evaluate(ADD_SHARED(T.address_of(state[1 + w // span]), sums[0]))
                else:
                    for d in T.unroll(digits):
                        sums[d] = sums[d] + digit(q[0], d, digits)
                v[2] = T.uint32(0)
                for j in T.unroll(form.width):
                    T.evaluate(
                        BALLOT(
                            T.address_of(v[1]), T.Cast("uint32", T.shift_right(q[0], T.int32(j)))
                        )
                    )
                    v[2] = T.Select(tx % 32 == j, v[1], v[2])
                if tx % 32 < form.width:
                    bits[i, w, tx % 32] = v[2]
        if columns == 0:
            for d in T.unroll(digits):
                T.evaluate(ADD_SHARED(T.address_of(state[1 + d]), sums[d]))
        end(scale, state, v, i, tx)

    return build


@functools.cache
def tables(tokens: int, inputs: int, steps: int, form: lut_bits.Format) -> PrimFunc:
    """Return the function of values (M, K), tables (M, S, 26, 32), scale (M, 1 + D)."""
    begin, read, end = _parts(form, inputs, form.digits)
    digits, length = form.digits, steps * words.STEP["lanes"]

    @T.prim_func(s_tir=True, private=True)
    def build(
        values: T.Buffer((tokens, inputs), "float32"),
        tables: T.Buffer((tokens, steps, GROUPS, 32), "uint32"),
        scale: T.Buffer((tokens, 1 + digits), "uint32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "lut_tables_build"})
        i = T.launch_thread("blockIdx.x", tokens)
        tx = T.launch_thread("threadIdx.x", THREADS)
        state = T.alloc_buffer((1 + digits,), "uint32", scope="shared")
        x = T.alloc_buffer((1,), "float32", scope="local")
        q = T.alloc_buffer((1,), "int32", scope="local")
        v = T.alloc_buffer((3,), "uint32", scope="local")
        sums = T.alloc_buffer((digits,), "uint32", scope="local")
        begin(values, state, v, i, tx)
        for d in T.unroll(digits):
            sums[d] = T.uint32(0)
        for turn in T.serial(-(-length // WARPS)):
            read(values, x, q, v, i, (turn * WARPS + tx // 32) * 32 + tx % 32)
            for d in T.unroll(digits):
                sums[d] = sums[d] + digit(q[0], d, digits)
        for turn in T.serial(-(-steps * GROUPS // WARPS)):
            group = T.bind(turn * WARPS + tx // 32)
            if group < steps * GROUPS:
                v[2] = T.uint32(0)
                for j in T.unroll(GROUP):
                    place = T.bind(group % GROUPS * GROUP + j)
                    if place < SPAN:
                        read(values, x, q, v, i, group // GROUPS * SPAN + place)
                        if T.bitwise_and(T.shift_right(tx, j), 1) == 1:
                            v[2] = v[2] + T.Cast("uint32", q[0])
                tables[i, group // GROUPS, group % GROUPS, tx % 32] = v[2]
        for d in T.unroll(digits):
            T.evaluate(ADD_SHARED(T.address_of(state[1 + d]), sums[d]))
        end(scale, state, v, i, tx)

    return build
