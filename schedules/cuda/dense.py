"""dense on GPUs for few rows: a warp's lanes are rows of the matrix, warps split the inputs."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend

OPS = ("dense",)
WARPS = 8


def schedule(sch: Schedule, backend: Backend) -> None:
    """A block of threads takes one lane block of the matrix."""
    sums, y = sch.get_sblock("sums"), sch.get_sblock("y")
    _, column = sch.get_loops(y)
    outer, lane = sch.split(column, [None, backend.lanes])
    row = sch.get_loops(y)[0]
    sch.reorder(outer, row, lane)
    sch.compute_at(sums, outer, preserve_unit_loops=True)
    sch.set_scope(sums, 0, "shared")
    m, b, lanes, k = sch.get_loops(sums)[1:]
    _, warp = sch.split(k, [None, WARPS])
    sch.bind(outer, "blockIdx.x")
    sch.bind(lanes, "threadIdx.x")
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
