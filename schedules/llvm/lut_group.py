"""lut_group on CPUs: the sums of one group and plane at a time, weighted before the next."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops.planes import VIEWS
from shiftadd_tvm.schedules.llvm import _lookup, lut

OPS = ("lut_group",)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Tensorize a group of steps of one row block; totals stay in registers or the first cache."""
    names = ("sums", "signed", "weighted", "totals", "scaled", "y")
    sums, signed, weighted, totals, scaled, y = (sch.get_sblock(name) for name in names)
    outputs = int(sch.get(y).writes[0].source.shape[1])
    row, column = sch.get_loops(y)
    outer, lane = sch.split(column, [None, backend.rows])
    sch.reorder(outer, row, lane)
    for stage in (scaled, totals):
        sch.compute_at(stage, outer, preserve_unit_loops=True)
    sch.parallel(outer)  # before the reduction is decomposed: afterwards TVM refuses
    m, b, v, i, c, p = sch.get_loops(totals)[1:]
    sch.reorder(b, c, p, m, v, i)
    for stage in (weighted, signed, sums):
        sch.compute_at(stage, p, preserve_unit_loops=True)
    step = sch.get_loops(sums)[-3]
    tile = lut.tile(sch, sums, step, backend, shared=1, unroll=1, prefetch=4096)
    group, m, block, plane, v, i = sch.get_loops(sums)[4:-3]
    # TVM drops loops of extent 1 from what it matches, so they stay outside
    single = [step] if tile.steps == 1 else []
    sch.reorder(group, block, plane, *single, m, v, i)
    begin = m if tile.tokens > 1 else v
    start = sch.decompose_reduction(sums, [*single, begin][0])
    sch.tensorize(begin, _lookup.register(tile))
    for stage in (start, signed, weighted, totals, scaled):
        sch.vectorize(sch.get_loops(stage)[-1])
    sch.decompose_reduction(totals, c)
    if outputs % backend.rows == 0:
        _, vector = sch.split(lane, [None, backend.rows // VIEWS])
        sch.vectorize(vector)
