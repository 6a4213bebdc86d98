"""gemm on GPUs: a block of threads widens a tile of a panel into shared memory and multiplies with it."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.schedules.cuda import _threads

OPS = ("gemm_planes", "gemm_dense", "gemm_group")
DEPTH = 32  # inputs that are widened at once
TILES = 8  # row tiles of a block


def schedule(sch: Schedule, backend: Backend) -> None:
    """A block takes a panel and several row tiles; a thread sums a row tile and two columns."""
    panel, sums = sch.get_sblock("panel"), sch.get_sblock("sums")
    for stage in sch.get_child_blocks(sch.get_sblock("root")):
        if sch.get(stage).name_hint not in ("panel", "sums"):
            _threads.kernel(sch, stage)
    written = sch.cache_write(sums, 0, "local")
    column_block, tile, i, j, k = sch.get_loops(sums)
    outer, part = sch.split(tile, [None, TILES])
    lane, pair = sch.split(j, [_threads.THREADS // TILES, None])
    steps, depth = sch.split(k, [None, DEPTH])
    sch.reorder(column_block, outer, part, lane, steps, depth, i, pair)
    sch.reverse_compute_at(written, lane, preserve_unit_loops=True)
    for loop, thread in (
        *((column_block, "blockIdx.x"), (outer, "blockIdx.y")),
        *((part, "threadIdx.y"), (lane, "threadIdx.x")),
    ):
        sch.bind(loop, thread)
    sch.set_scope(panel, 0, "shared")  # of a block: what all of its threads need is computed
    sch.compute_at(panel, steps, preserve_unit_loops=True)
    column = sch.fuse(*sch.get_loops(panel)[-3:])
    _, y, x = sch.split(column, [None, TILES, _threads.THREADS // TILES])
    sch.bind(y, "threadIdx.y")
    sch.bind(x, "threadIdx.x")
    sch.decompose_reduction(sums, steps)
