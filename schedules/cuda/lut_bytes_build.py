"""lut_bytes_build on GPUs where nothing is fused with it: a row by a block of threads, or, where they
cannot share a row, stage by stage."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops.hadamard import LIVE
from shiftadd_tvm.schedules.cuda import _row, stages

OPS = ("lut_bytes_build",)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Bind the stages."""
    values = sch.mod["main"].params[0]
    fits = int(values.shape[1]) * LIVE <= backend.shared
    _row.share(sch) if fits else stages.schedule(sch, backend)
