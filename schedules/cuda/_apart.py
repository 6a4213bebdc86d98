"""The two kernels of a long row (`produce.py`) whose runs have a block each, a warp.

Steps of a chain without a norm look at no more than a run, so that runs need not wait for each other
until numbers are rounded by the largest one of the row. The first kernel leaves the row and the largest
magnitude of each run in memory; the second one, which begins when the first has ended, rounds them. Sums
of digits, whole numbers that are added in any order, begin at the zeros that the first one writes.
"""

from typing import Any

from tvm.script import tirx as T

from shiftadd_tvm.schedules.cuda import _chain_ends
from shiftadd_tvm.schedules.cuda._instructions import MAX_LANES
from shiftadd_tvm.schedules.cuda._runs import Row


def kernels(row: Row, steps: Any, finish: Any, count: int, scale: tuple[int, ...]) -> Any:
    """Return the body of the function: of `count` tensors the last four are the row (M, K) float32, the
    peaks of its runs (M, R) uint32, what is built, and its scale."""
    first, second = _made(row, steps, count, scale), _rounded(row, finish, count, scale[0])

    @T.inline
    def body(given):
        first(given)
        second(given)

    return body


def _made(row: Row, steps: Any, count: int, scale: tuple[int, ...]) -> Any:
    """Return the first kernel."""
    peaks, sums = count - 3, count - 1

    @T.inline
    def kernel(given):
        with T.launch_thread("blockIdx.x", row.runs) as run:
            with T.launch_thread("blockIdx.y", scale[0]) as i:
                with T.launch_thread("threadIdx.x", 32) as lane:
                    with T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1):
                        x = T.alloc_buffer((row.held,), "float32", scope="local")
                        packed = T.alloc_buffer((row.held,), "uint32", scope="local")
                        v = T.alloc_buffer((2,), "float32", scope="local")
                        u = T.alloc_buffer((1,), "uint32", scope="local")
                        for n in T.unroll(row.held):
                            packed[n] = T.uint32(0)
                        steps(x, (None, None, packed), v, None, given, i, run, lane)
                        _chain_ends.largest(x, u, row.held)
                        if lane == 0:
                            given[peaks][i, run] = u[0]
                        if run == 0 and lane < min(scale[1], 32):  # sums of groups are not added to
                            given[sums][i, lane] = T.uint32(0)

    return kernel


def _rounded(row: Row, finish: Any, count: int, tokens: int) -> Any:
    """Return the second kernel."""
    value, peaks = count - 4, count - 3

    @T.inline
    def kernel(given):
        with T.launch_thread("blockIdx.x", row.runs) as run:
            with T.launch_thread("blockIdx.y", tokens) as i:
                with T.launch_thread("threadIdx.x", 32) as lane:
                    with T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1):
                        x = T.alloc_buffer((row.held,), "float32", scope="local")
                        q = T.alloc_buffer((row.held,), "int32", scope="local")
                        u = T.alloc_buffer((2,), "uint32", scope="local")
                        for n in T.unroll(row.held):
                            x[n] = T.float32(0)
                            if row.input(n, run, lane) < row.inputs:
                                x[n] = given[value][i, row.input(n, run, lane)]
                        u[0] = T.uint32(0)
                        for turn in T.unroll(-(-row.runs // 32)):
                            if turn * 32 + lane < row.runs:
                                u[0] = T.max(u[0], given[peaks][i, turn * 32 + lane])
                        T.evaluate(MAX_LANES(T.address_of(u[0])))
                        finish(given[count - 2], given[count - 1], q, x, u, i, run, lane)

    return kernel
