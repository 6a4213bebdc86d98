"""lut_round on CPUs: whole rows stay in the cache from stage to stage, in vectors."""

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.tirx import IntImm

from shiftadd_tvm.backend import Backend

OPS = ("lut_round",)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Compare and sum in vectors too; many rows (a symbolic count) go to threads."""
    reductions = [
        partial
        for name in ("peak", "total")
        for partial in split_reduction(sch, sch.get_sblock(name), backend.lanes)
    ]
    *stages, last = sch.get_child_blocks(sch.get_sblock("root"))
    row = sch.get_loops(last)[0]
    if not isinstance(sch.get(row).extent, IntImm):
        for stage in reversed(stages):
            sch.compute_at(stage, row, preserve_unit_loops=True)
        sch.parallel(row)
    for stage in (*stages, last):
        if sch.get(stage).name_hint in ("fixed", "rounded"):
            vectorize(sch, stage, backend.lanes)
    for partial in reductions:  # last: afterwards TVM refuses to annotate loops
        start = sch.decompose_reduction(partial, sch.get_loops(partial)[-2])
        sch.vectorize(sch.get_loops(start)[-1])


def split_reduction(sch: Schedule, stage, lanes: int) -> list[SBlockRV]:
    """Sum `lanes` numbers at once; return what is to be decomposed in the end."""
    loop = sch.get_loops(stage)[-1]
    if int(sch.get(loop).extent) % lanes:
        return []
    _, lane = sch.split(loop, [None, lanes])
    partial = sch.rfactor(lane, 1)
    sch.vectorize(sch.get_loops(partial)[-1])
    return [partial]


def vectorize(sch: Schedule, stage, lanes: int) -> None:
    """Make vectors of the innermost loop of a stage, if it has whole ones."""
    loop = sch.get_loops(stage)[-1]
    if int(sch.get(loop).extent) % lanes == 0:
        _, vector = sch.split(loop, [None, lanes])
        sch.vectorize(vector)
