"""lut_group on CPUs: the sums of one group and plane at a time, weighted before the next."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops.planes import VIEWS
from shiftadd_tvm.schedules.llvm import _lookup, lut

OPS = ("lut_group",)
SHARED = {"avx512": 2, "avx2": 2}  # row blocks that share the loads of a table
AHEAD = (1024, 4096)  # bytes, into the first and the second cache


def schedule(sch: Schedule, backend: Backend) -> None:
    """Tensorize a group of steps of a few row blocks; totals stay in registers or the first cache."""
    names = ("sums", "weighted", "totals", "scaled", "y")
    sums, weighted, totals, scaled, y = (sch.get_sblock(name) for name in names)
    outputs = int(sch.get(y).writes[0].source.shape[1])
    row, column = sch.get_loops(y)
    shared = lut.divisor(outputs, backend.rows, SHARED.get(backend.isa, 1))
    outer, lane = sch.split(column, [None, shared * backend.rows])
    sch.reorder(outer, row, lane)
    for stage in (scaled, totals):
        sch.compute_at(stage, outer, preserve_unit_loops=True)
    sch.parallel(outer)  # before the reduction is decomposed: afterwards TVM refuses
    m, b, v, i, p, c = sch.get_loops(totals)[1:]
    sch.reorder(p, c, m, b, v, i)
    for stage in (weighted, sums):
        sch.compute_at(stage, c, preserve_unit_loops=True)
    step = sch.get_loops(sums)[-3]
    tile = lut.tile(sch, sums, step, backend, shared, unroll=1, ahead=AHEAD)
    group, m, block, plane, v, i = sch.get_loops(sums)[3:-3]
    # TVM drops loops of extent 1 from what it matches, so they stay outside
    covered = [loop for loop in (m, block) if int(sch.get(loop).extent) > 1]
    single = [loop for loop in (m, block, step) if int(sch.get(loop).extent) == 1]
    sch.reorder(group, plane, *single, *covered, v, i)
    begin = [*covered, v][0]
    start = sch.decompose_reduction(sums, [*single, begin][0])
    sch.tensorize(begin, _lookup.register(tile))
    for stage in (start, weighted, totals, scaled):
        sch.vectorize(sch.get_loops(stage)[-1])
    sch.decompose_reduction(totals, p)
    if outputs % backend.rows == 0:
        _, vector = sch.split(lane, [None, backend.rows // VIEWS])
        sch.vectorize(vector)
