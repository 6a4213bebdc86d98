"""gemm on CPUs: a thread widens one panel of columns and multiplies all row tiles with it."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend

OPS = ("gemm_planes", "gemm_dense", "gemm_block", "gemm_group")


def schedule(sch: Schedule, backend: Backend) -> None:
    """Keep a tile of 6 rows × 2 vectors in registers over the whole sum."""
    rows, panel, sums, y = (sch.get_sblock(name) for name in ("rows", "panel", "sums", "y"))
    sch.parallel(sch.get_loops(rows)[0])
    tile = sch.cache_write(sums, 0, "global")
    column_block, row_tile, i, j = sch.get_loops(tile)
    part, j = sch.split(j, [None, 2 * backend.lanes])
    sch.reorder(column_block, row_tile, part, i, j)
    sch.compute_at(sums, part, preserve_unit_loops=True)
    sch.compute_at(panel, column_block, preserve_unit_loops=True)
    sch.parallel(column_block)
    *_, inner_i, inner_j, k = sch.get_loops(sums)
    sch.reorder(k, inner_i, inner_j)
    for block in (sums, tile, panel):
        _vectorize_last(sch, block, backend.lanes)
    sch.unroll(inner_i)
    sch.decompose_reduction(sums, k)  # last: afterwards TVM refuses to annotate loops
    _finish(sch, y, backend.lanes)


def _vectorize_last(sch: Schedule, block, lanes: int) -> None:
    outer, vector = sch.split(sch.get_loops(block)[-1], [None, lanes])
    sch.unroll(outer)
    sch.vectorize(vector)


def _finish(sch: Schedule, y, lanes: int) -> None:
    row, column = sch.get_loops(y)
    sch.parallel(row)
    if int(sch.get(y).writes[0].source.shape[1]) % lanes == 0:
        _, vector = sch.split(column, [None, lanes])
        sch.vectorize(vector)
