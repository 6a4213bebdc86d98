"""half_build on GPUs: a block of threads finds a row's largest number, then a thread makes each word."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.schedules.cuda import _threads

OPS = ("half_build",)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Three kernels: rows share nothing but their largest magnitudes."""
    peak, halves, exponent = (sch.get_sblock(name) for name in ("peak", "halves", "exponent"))
    row, inputs = sch.get_loops(peak)
    _threads.share(sch, [inputs])
    sch.bind(row, "blockIdx.x")
    _threads.kernel(sch, halves)
    _threads.kernel(sch, exponent)
