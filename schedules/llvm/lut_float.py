"""lut_float_query on CPUs: 32-bit lanes are rows, tables are read in registers, threads split rows."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops.planes import STEP, VIEWS, chunks
from shiftadd_tvm.schedules.llvm import _lookup_float
from shiftadd_tvm.schedules.llvm.lut import divisor

OPS = ("lut_float_query",)
SHARED = {"avx512": 4}  # row blocks that share the loads of a table, streams of planes side by side
AHEAD = (768, 1536)  # bytes, into the first and the second cache


def schedule(sch: Schedule, backend: Backend) -> None:
    """Tensorize one chunk of one plane of a few row blocks; 4 vectors of sums each stay in registers."""
    sums, totals, y = (sch.get_sblock(name) for name in ("sums", "totals", "y"))
    outputs = int(sch.get(y).writes[0].source.shape[1])
    row, column = sch.get_loops(y)
    shared = divisor(outputs, backend.rows, SHARED.get(backend.isa, 1))
    outer, lane = sch.split(column, [None, shared * backend.rows])
    sch.reorder(outer, row, lane)
    for stage in (totals, sums):
        sch.compute_at(stage, outer, preserve_unit_loops=True)
    sch.parallel(outer)  # before the reduction is decomposed: afterwards TVM refuses
    m, b, p, v, i, step, *_ = sch.get_loops(sums)[1:]
    count = chunks(int(sch.get(step).extent) * STEP)
    chunk, step = sch.split(step, [count, None], preserve_unit_iters=True)
    steps = int(sch.get(step).extent)
    # TVM drops loops of extent 1 from what it matches, so they stay outside
    covered = [b, v] if shared > 1 else [v]
    single = [loop for loop, extent in ((b, shared), (step, steps)) if extent == 1]
    sch.reorder(p, m, chunk, *single, *covered, i)
    start = sch.decompose_reduction(sums, chunk)
    tile = _lookup_float.Tile(backend.isa, backend.rows, shared, steps, *AHEAD)
    sch.tensorize(covered[0], _lookup_float.register(tile))
    for stage in (start, totals):
        sch.vectorize(sch.get_loops(stage)[-1])
    if outputs % backend.rows == 0:
        _, vector = sch.split(lane, [None, backend.rows // VIEWS])
        sch.vectorize(vector)
