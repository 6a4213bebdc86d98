"""positions, append and place on GPUs: a number a thread."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.schedules.cuda import _threads

OPS = ("positions", "append", "place")


def schedule(sch: Schedule, backend: Backend) -> None:
    """Spread all loops over threads."""
    (stage,) = sch.get_child_blocks(sch.get_sblock("root"))
    _threads.spread(sch, sch.get_loops(stage))
