"""Row-wise operators on CPUs: every stage of a row stays in the cache, inner loops are vectors."""

from tvm.s_tir import Schedule
from tvm.tirx import IntImm

from shiftadd_tvm.backend import Backend

OPS = (
    *("shift", "lut_float_build"),
    *("activate", "activate_mul", "soft_cap"),
    *("route", "mix"),
    *("add", "scale", "add_positions", "rope", "rope_angles", "take_heads", "embed"),
)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Compute all stages row by row; many rows (a symbolic count) go to threads."""
    *stages, last = sch.get_child_blocks(sch.get_sblock("root"))
    row = sch.get_loops(last)[0]
    for stage in reversed(stages):
        sch.compute_at(stage, row, preserve_unit_loops=True)
    for stage in (*stages, last):
        _vectorize(sch, stage, backend.lanes)
    if not isinstance(sch.get(row).extent, IntImm):
        sch.parallel(row)


def _vectorize(sch: Schedule, stage, lanes: int) -> None:
    inner = sch.get_loops(stage)[-1]
    extent = sch.get(inner).extent
    reduction = any(int(axis.iter_type) == 2 for axis in sch.get(stage).iter_vars)
    if reduction or not isinstance(extent, IntImm) or int(extent) % lanes:
        return
    _, vector = sch.split(inner, [None, lanes])
    sch.vectorize(vector)
