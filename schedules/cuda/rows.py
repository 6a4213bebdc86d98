"""Row-wise operators on GPUs: a block of threads a row, stages of the row in shared memory."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.schedules.cuda import _threads

OPS = (
    *("shift", "lut_float_build", "lut_round"),
    *("rms_norm", "layer_norm", "head_norm", "activate", "activate_mul", "soft_cap"),
    *("route", "mix", "join"),
    *("add", "scale", "add_positions", "rope", "rope_angles", "take_heads", "embed"),
)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Compute all stages of a row by one block; sums go to its threads in turn."""
    *stages, last = sch.get_child_blocks(sch.get_sblock("root"))
    row = sch.get_loops(last)[0]
    for stage in reversed(stages):
        sch.compute_at(stage, row, preserve_unit_loops=True)
        sums = _threads.is_reduction(sch, stage)
        single = all(sch.get(loop).extent == 1 for loop in sch.get_loops(stage)[1:])
        # what a row has one of may not lie among what TVM overlays
        sch.set_scope(stage, 0, "shared" if sums or single else "shared.dyn")
    for stage in (*stages, last):
        inner = sch.get_loops(stage)[1:]
        # what sums over a row has one result: its last loop is the sum
        _threads.share(sch, inner[-1:] if _threads.is_reduction(sch, stage) else inner)
    sch.bind(row, "blockIdx.x")
