"""Norms on CPUs: rows as in `rows.py`, and the sums of a row a vector at a time.

One number after the other, a sum of 4096 waits for each addition: microseconds, of which a step has one
or two a layer.
"""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.schedules.llvm import rows
from shiftadd_tvm.schedules.llvm.lut_round import split_reduction

OPS = ("rms_norm", "layer_norm", "head_norm")


def schedule(sch: Schedule, backend: Backend) -> None:
    """Cut every sum into as many as a vector has lanes, which are added up in the end."""
    stages = sch.get_child_blocks(sch.get_sblock("root"))
    sums = [stage for stage in stages if sch.get(stage).name_hint in ("sums", "squares")]
    partial = [part for stage in sums for part in split_reduction(sch, stage, backend.lanes)]
    rows.schedule(sch, backend)
    for part in partial:  # its loops inside the row's were made anew: lanes, rows (and heads), chunks
        _, lane, *_, chunk = sch.get_loops(part)
        sch.reorder(chunk, lane)
        sch.vectorize(lane)  # now: afterwards TVM refuses to annotate it
        sch.vectorize(sch.get_loops(sch.decompose_reduction(part, chunk))[-1])
