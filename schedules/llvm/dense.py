"""dense on CPUs for few rows: several lane blocks at once hide the latency of the running sums."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend

OPS = ("dense",)
BLOCKS = 4  # lane blocks side by side
BLOCKS_OF_ONE = 8  # of one row: more streams of the matrix, and registers to spare


def schedule(sch: Schedule, backend: Backend) -> None:
    """Split the outputs over threads by groups of lane blocks."""
    sums, y = sch.get_sblock("sums"), sch.get_sblock("y")
    row, column = sch.get_loops(y)
    blocks = BLOCKS_OF_ONE if int(sch.get(row).extent) == 1 else BLOCKS
    outer, lane = sch.split(column, [None, blocks * backend.lanes])
    sch.reorder(outer, row, lane)
    sch.compute_at(sums, outer, preserve_unit_loops=True)
    m, b, lanes, k = sch.get_loops(sums)[-4:]
    sch.reorder(k, m, b, lanes)
    sch.parallel(outer)
    for loop in (m, b):
        sch.unroll(loop)
    sch.vectorize(lanes)
    sch.decompose_reduction(sums, k)  # last: afterwards TVM refuses to annotate loops
