"""lut_fix on CPUs: threads split the rows, once for the largest number of each, once to round them."""

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.schedules.llvm.lut_round import split_reduction, vectorize

OPS = ("lut_fix",)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Compare and round in vectors."""
    peak, exponent = sch.get_sblock("peak"), sch.get_sblock("exponent")
    partials = split_reduction(sch, peak, backend.lanes)
    last = sch.get_producers(exponent)[0]  # `field`: cheaper twice than in memory
    sch.compute_inline(last)
    row = sch.get_loops(peak)[0]
    for partial in partials:
        sch.compute_at(partial, row, preserve_unit_loops=True)
    sch.parallel(row)
    *padded, fixed = _stages(sch)
    for stage in padded:
        sch.parallel(sch.get_loops(stage)[0])
        sch.compute_at(fixed, sch.get_loops(stage)[0], preserve_unit_loops=True)
    if not padded:
        sch.parallel(sch.get_loops(fixed)[0])
    for stage in (*padded, fixed):
        vectorize(sch, stage, backend.lanes)
    for partial in partials:  # last: afterwards TVM refuses to annotate loops
        start = sch.decompose_reduction(partial, sch.get_loops(partial)[-2])
        sch.vectorize(sch.get_loops(start)[-1])


def _stages(sch: Schedule) -> list[SBlockRV]:
    """Return the stages `padded`, where there is one, and `fixed`."""
    names = {sch.get(stage).name_hint: stage for stage in sch.get_child_blocks(sch.get_sblock("root"))}
    return [names[name] for name in ("padded", "fixed") if name in names]
