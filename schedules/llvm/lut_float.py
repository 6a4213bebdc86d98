"""lut_float_query on CPUs: 32-bit lanes are rows, tables are read in registers, threads split rows."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops.planes import STEP, VIEWS, chunks
from shiftadd_tvm.schedules.llvm import _lookup_float

OPS = ("lut_float_query",)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Tensorize one chunk of one plane; its 4 vectors of sums stay in registers."""
    sums, totals, y = (sch.get_sblock(name) for name in ("sums", "totals", "y"))
    outputs = int(sch.get(y).writes[0].source.shape[1])
    row, column = sch.get_loops(y)
    outer, lane = sch.split(column, [None, backend.rows])
    sch.reorder(outer, row, lane)
    for stage in (totals, sums):
        sch.compute_at(stage, outer, preserve_unit_loops=True)
    sch.parallel(outer)  # before the reduction is decomposed: afterwards TVM refuses
    m, b, p, v, i, step, *_ = sch.get_loops(sums)[1:]
    count = chunks(int(sch.get(step).extent) * STEP)
    chunk, step = sch.split(step, [count, None], preserve_unit_iters=True)
    steps = int(sch.get(step).extent)
    # TVM drops loops of extent 1 from what it matches, so they stay outside
    sch.reorder(b, p, m, chunk, *([step] if steps == 1 else []), v, i)
    start = sch.decompose_reduction(sums, chunk)
    sch.tensorize(v, _lookup_float.register(backend.isa, backend.rows, steps))
    for stage in (start, totals):
        sch.vectorize(sch.get_loops(stage)[-1])
    if outputs % backend.rows == 0:
        _, vector = sch.split(lane, [None, backend.rows // VIEWS])
        sch.vectorize(vector)
