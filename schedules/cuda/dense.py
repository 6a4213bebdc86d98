"""dense on GPUs for few rows: a block of threads for a lane block of the matrix, warps split the inputs.

A lane loads 16 bytes, some rows of one input, a warp as many inputs as make 512 bytes that lie side by
side; several loads are under way before the first is used. Sums of the same rows go across the warp once,
at the end, and then over the warps, in their order.
"""

import functools

from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP
from shiftadd_tvm.schedules.cuda._instructions import ADD_FLOATS_ACROSS, LOAD16

OPS = ("dense",)
WARPS = 8
AHEAD = 4  # loads that are under way
TOKENS = 4  # of a block at most: more are blocks of their own
BYTES = {"float32": 4, "float16": 2, "uint16": 2, "int8": 1}


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel for the sizes of the function; a scale of each row is the only other operand that
    a graph gives."""
    values, table, *scale, y = sch.mod["main"].params
    assert len(scale) <= 1, "a bias is not for GPUs"
    shape = lambda buffer: tuple(int(size) for size in buffer.shape)
    return kernel(shape(values), shape(table), str(table.dtype), shape(y)[1], bool(scale))


def _widen(raw, dtype: str):
    """Return the float32 of a number as it is stored."""
    if dtype == "uint16":  # the bits of bfloat16
        return T.reinterpret("float32", T.shift_left(T.Cast("uint32", raw), T.uint32(16)))
    return T.Cast("float32", raw)


def _step(tokens: int, inputs: int, wide: int, dtype: str):
    """Return how a warp adds the products of `AHEAD` loads to its sums, acc[m · wide + j] of a token and
    a row; `rows` are the tokens that there are."""
    lanes = 32 // wide  # that share an input

    @T.inline
    def step(acc, raw, x, values, table, block, start, rows, first, lane):
        for turn in T.unroll(AHEAD):
            k = T.meta_var(first + turn * WARPS * wide + lane // lanes)
            if k < inputs:
                place = T.address_of(table[block, k, lane % lanes * wide])
                T.evaluate(LOAD16(T.address_of(raw[turn * wide]), place))
        for turn in T.unroll(AHEAD):
            k = T.meta_var(first + turn * WARPS * wide + lane // lanes)
            if k < inputs:
                for m in T.unroll(tokens):
                    if start + m < rows:
                        x[0] = values[start + m, k]
                        for j in T.unroll(wide):
                            at = T.meta_var(m * wide + j)
                            acc[at] = acc[at] + x[0] * _widen(raw[turn * wide + j], dtype)

    return step


def _finish(tokens: int, wide: int, outputs: int, scaled: bool):
    """Return how sums go across the warps, and become results."""
    lanes = 32 // wide
    steps = wide.bit_length() - 1
    turns = -(-tokens * 32 // (32 * WARPS))

    @T.inline
    def finish(sums, acc, x, scale, y, block, start, rows, tx):
        for at, j in T.grid(tokens * wide, steps):
            mask = T.meta_var(T.uint32(lanes) << T.Cast("uint32", j))
            T.evaluate(ADD_FLOATS_ACROSS(T.address_of(acc[at]), mask))
        if tx % 32 < lanes:
            for m, j in T.grid(tokens, wide):
                sums[tx // 32, m * 32 + tx % 32 * wide + j] = acc[m * wide + j]
        T.tvm_storage_sync("shared")
        for turn in T.unroll(turns):
            item = T.bind(turn * 32 * WARPS + tx)
            m = T.meta_var(start + item // 32)
            row = T.meta_var(block * 32 + item % 32)
            if item < tokens * 32 and m < rows and row < outputs:
                x[0] = T.float32(0)
                for warp in T.unroll(WARPS):
                    x[0] = x[0] + sums[warp, item]
                if scaled:
                    x[0] = x[0] * scale[row]
                y[m, row] = x[0]

    return finish


@functools.cache
def kernel(
    values_shape: tuple[int, ...],
    table_shape: tuple[int, ...],
    dtype: str,
    outputs: int,
    scaled: bool,
) -> PrimFunc:
    """Return the function of values (M, K), table (NB, K, 32), (scale (N,),) y (M, N)."""
    (rows, inputs), wide = values_shape, 16 // BYTES[dtype]
    tokens, stride = min(rows, TOKENS), WARPS * wide * AHEAD
    step, finish = _step(tokens, inputs, wide, dtype), _finish(tokens, wide, outputs, scaled)

    @T.inline
    def body(values, table, scale, y):
        block = T.launch_thread("blockIdx.x", -(-outputs // 32))
        part = T.launch_thread("blockIdx.y", -(-rows // tokens))
        tx = T.launch_thread("threadIdx.x", 32 * WARPS)
        # without this bound the assembler saves registers, and loads come after products
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 2)
        sums = T.alloc_buffer((WARPS, tokens * 32), "float32", scope="shared")
        acc = T.alloc_buffer((tokens * wide,), "float32", scope="local")
        raw = T.alloc_buffer((AHEAD * wide,), dtype, scope="local")
        x = T.alloc_buffer((1,), "float32", scope="local")
        for at in T.unroll(tokens * wide):
            acc[at] = T.float32(0)
        for turn in T.serial(-(-inputs // stride)):
            first = T.meta_var(turn * stride + tx // 32 * wide)
            step(acc, raw, x, values, table, block, part * tokens, rows, first, tx % 32)
        finish(sums, acc, x, scale, y, block, part * tokens, rows, tx)

    return (_scaled if scaled else _plain)(body, values_shape, table_shape, dtype, outputs)


def _plain(body, values_shape, table_shape, dtype, outputs):
    @T.prim_func(s_tir=True, private=True)
    def dense(
        values: T.Buffer(values_shape, "float32"),
        table: T.Buffer(table_shape, dtype),
        y: T.Buffer((values_shape[0], outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "dense"})
        body(values, table, None, y)

    return dense


def _scaled(body, values_shape, table_shape, dtype, outputs):
    @T.prim_func(s_tir=True, private=True)
    def dense(
        values: T.Buffer(values_shape, "float32"),
        table: T.Buffer(table_shape, dtype),
        scale: T.Buffer((outputs,), "float32"),
        y: T.Buffer((values_shape[0], outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "dense"})
        body(values, table, scale, y)

    return dense
