"""lut_query on CPUs: lanes are vector lanes, tables are read in registers, threads split rows."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.schedules.llvm import _lookup

OPS = ("lut_query",)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Tensorize one packed word of one lane block; one block of rows at a time, all planes."""
    sums, totals, y = (sch.get_sblock(name) for name in ("sums", "totals", "y"))
    planes = int(sch.get(sums).writes[0].source.shape[2])
    row, column = sch.get_loops(y)
    outer, lane = sch.split(column, [None, backend.lanes])
    sch.reorder(outer, row, lane)
    sch.set_scope(sums, 0, "local")
    sch.set_scope(totals, 0, "local")
    sch.compute_at(totals, row, preserve_unit_loops=True)
    outputs = int(sch.get(y).writes[0].source.shape[1])
    if outputs >= backend.lanes:  # of fewer TVM would compute those lanes only: nothing matches
        sch.compute_at(sums, outer, preserve_unit_loops=True)
    m, b, p, lanes, word, group, entry = sch.get_loops(sums)[-7:]
    sch.reorder(word, m, b, p, lanes, group, entry)
    sch.parallel(outer)  # before the reduction is decomposed: afterwards TVM refuses
    start = sch.decompose_reduction(sums, word)
    sch.tensorize(p if planes > 1 else lanes, _lookup.register(backend.isa, planes, backend.lanes))
    for loop in (m, b):
        sch.unroll(loop)
    *_, start_plane, start_lane = sch.get_loops(start)
    sch.unroll(start_plane)
    sch.vectorize(start_lane)
    if outputs % backend.lanes == 0:
        sch.vectorize(lane)
        sch.vectorize(sch.get_loops(totals)[-1])
