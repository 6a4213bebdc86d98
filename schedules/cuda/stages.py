"""Everything without a schedule of its own on GPUs: every stage a kernel, every result a thread.

Correct for any shape, and not fast: the formats of scales and of activations that are there to be
compared with, and what bench and prefill need of small tables.
"""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.schedules.cuda import _threads

OPS = ("lut_block", "gemm_block", "lut_float_query", "read_memory", "read_memory_ahead")


def schedule(sch: Schedule, backend: Backend) -> None:
    """Bind every stage; stages meet in global memory."""
    for stage in sch.get_child_blocks(sch.get_sblock("root")):
        _threads.kernel(sch, stage)
