"""lutgemm as its authors compute it: tables of 256 sums in shared memory, results added in global memory.

The baseline of `bench`, of no model. A block of threads makes the tables of 128 inputs at a time, from
two tables of 16 sums for each 8 of them, and looks the bytes of its rows up; bytes of neighbouring rows
fall on the same banks of shared memory, which serve them one after the other. Blocks split the inputs
too, so y is set first, by a kernel of its own.
"""

import functools

from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP, words
from shiftadd_tvm.ops.lutgemm import GROUP, ORDER
from shiftadd_tvm.ops.shift import apply_terms
from shiftadd_tvm.schedules.cuda._instructions import ADD_FLOAT, LOAD16

OPS = ("lutgemm",)
THREADS = 256
SPAN = words.STEP[ORDER] * words.BITS  # inputs of a step
TABLES, ENTRIES, HALF = SPAN // GROUP, 1 << GROUP, 1 << GROUP // 2
# rows of a thread, steps of a block: `bench` takes whichever is the fastest
VARIANTS = ((1, 1), (1, 4), (2, 1), (2, 2), (2, 4), (4, 1), (4, 4))


def schedule(sch: Schedule, backend: Backend, rows: int = 2, steps: int = 2) -> PrimFunc:
    """Return the two kernels for the sizes of the function."""
    x, planes, plane_terms, row_terms, y = sch.mod["main"].params
    shape = lambda buffer: tuple(int(size) for size in buffer.shape)
    widths = shape(plane_terms)[2], shape(row_terms)[0]
    return kernels(shape(x), shape(planes), *widths, int(y.shape[1]), rows, steps)


def _tables(inputs: int):
    """Return the inlined code that makes the tables of step s of token m, zeros behind the last step."""

    @T.inline
    def make(x, halves, tables, f, m, s, tx):
        for z in T.unroll(TABLES * 2 * HALF // THREADS):
            at = T.meta_var(z * THREADS + tx)
            f[0] = T.float32(0)
            for j in T.unroll(GROUP // 2):
                k = T.bind(s * SPAN + at // HALF * (GROUP // 2) + j)
                f[1] = T.if_then_else(k < inputs, x[m, T.min(k, inputs - 1)], T.float32(0))
                one = T.meta_var(T.bitwise_and(T.shift_right(at, j), 1) == 1)
                f[0] = f[0] + T.Select(one, f[1], T.float32(0) - f[1])
            halves[at // HALF, at % HALF] = f[0]
        T.tvm_storage_sync("shared")
        for g in T.unroll(TABLES):
            tables[g, tx] = halves[2 * g, tx % HALF] + halves[2 * g + 1, tx // HALF]
        T.tvm_storage_sync("shared")

    return make


def _look_up(rows: int, count: int, blocks: int):
    """Return the inlined code by which a thread looks a step of its rows up, from row block b on."""
    apart = THREADS // words.ROWS  # row blocks between a thread's rows

    @T.inline
    def look_up(acc, w, tables, planes, b, s, tx):
        for r, p in T.grid(rows, count):
            own = T.meta_var(T.min(b + r * apart + tx // 32, blocks - 1))
            T.evaluate(
                LOAD16(
                    T.address_of(w[(r * count + p) * 4]), T.address_of(planes[own, s, p, tx % 32, 0])
                )
            )
        for i in T.unroll(rows * count):
            for g in T.unroll(TABLES):
                byte = T.shift_right(w[i * 4 + g // 4], T.Cast("uint32", g % 4 * 8))
                acc[i] = acc[i] + tables[g, T.Cast("int32", T.bitwise_and(byte, T.uint32(255)))]

    return look_up


def _add(rows: int, count: int, outputs: int, widths: tuple[int, int]):
    """Return the inlined code that adds a thread's sums, scaled, to y."""
    of_planes, of_rows = widths
    apart = THREADS // words.ROWS

    @T.inline
    def add(y, acc, f, plane_terms, row_terms, b, m, tx):
        for r in T.unroll(rows):
            row = T.bind((b + r * apart) * words.ROWS + tx)
            if row < outputs:
                f[0] = T.float32(0)
                for p in T.unroll(count):
                    terms = T.meta_var(
                        [plane_terms[row // words.ROWS, p, t] for t in range(of_planes)]
                    )
                    f[0] = f[0] + apply_terms(acc[r * count + p], terms)
                terms = T.meta_var([row_terms[t, row] for t in range(of_rows)])
                T.evaluate(ADD_FLOAT(T.address_of(y[m, row]), apply_terms(f[0], terms)))

    return add


@functools.cache
def kernels(
    x_shape: tuple[int, int],
    planes_shape: tuple[int, ...],
    plane_width: int,
    row_width: int,
    outputs: int,
    rows: int,
    steps: int,
) -> PrimFunc:
    """Return the function of x (M, K), planes, terms, y (M, N)."""
    tokens, inputs = x_shape
    blocks, length, count = planes_shape[:3]
    own = rows * THREADS // words.ROWS  # row blocks of a block of threads
    make = _tables(inputs)
    look_up = _look_up(rows, count, blocks)
    add = _add(rows, count, outputs, (plane_width, row_width))

    @T.inline
    def body(x, planes, plane_terms, row_terms, y):
        with T.launch_thread("blockIdx.x", -(-outputs // THREADS)) as bx:
            with T.launch_thread("blockIdx.y", tokens) as by:
                with T.launch_thread("threadIdx.x", THREADS) as tx:
                    if bx * THREADS + tx < outputs:
                        y[by, bx * THREADS + tx] = T.float32(0)
        part = T.launch_thread("blockIdx.x", -(-length // steps))
        tile = T.launch_thread("blockIdx.y", -(-blocks // own))
        m = T.launch_thread("blockIdx.z", tokens)
        tx = T.launch_thread("threadIdx.x", THREADS)
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 2)
        halves = T.alloc_buffer((2 * TABLES, HALF), "float32", scope="shared")
        tables = T.alloc_buffer((TABLES, ENTRIES), "float32", scope="shared")
        acc = T.alloc_buffer((rows * count,), "float32", scope="local")
        w = T.alloc_buffer((rows * count * 4,), "uint32", scope="local")
        f = T.alloc_buffer((2,), "float32", scope="local")
        for i in T.unroll(rows * count):
            acc[i] = T.float32(0)
        for turn in T.serial(steps):
            s = T.bind(part * steps + turn)
            make(x, halves, tables, f, m, s, tx)
            look_up(acc, w, tables, planes, tile * own, T.min(s, length - 1), tx)
            T.tvm_storage_sync("shared")
        add(y, acc, f, plane_terms, row_terms, tile * own, m, tx)

    plane_shape, row_shape = (blocks, count, plane_width), (row_width, blocks * words.ROWS)

    @T.prim_func(s_tir=True, private=True)
    def lutgemm(
        x: T.Buffer(x_shape, "float32"),
        planes: T.Buffer(planes_shape, "uint32"),
        plane_terms: T.Buffer(plane_shape, "uint8"),
        row_terms: T.Buffer(row_shape, "uint8"),
        y: T.Buffer((tokens, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "lutgemm"})
        body(x, planes, plane_terms, row_terms, y)

    return lutgemm
