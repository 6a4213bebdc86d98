"""How a block of threads takes a row through stages that follow one another, in one kernel.

A row lies in shared memory. Stages that sum over a row are shared by all threads; of those with as many
results a thread sums each. All threads wait for each other between two stages.
"""

import math

from tvm.s_tir import Schedule

from shiftadd_tvm.schedules.cuda import _threads

THREADS = 1024


def share(sch: Schedule) -> None:
    """Merge the row loops of all stages. What a later stage reads of an output, the same thread wrote:
    nobody waits for global memory."""
    root = sch.get_sblock("root")
    held = {buffer.name for buffer in sch.get(root).alloc_buffers}
    stages = sch.get_child_blocks(root)
    row = sch.merge(*(sch.get_loops(stage)[0] for stage in stages))
    for stage in stages:
        _place(sch, stage, held)
    sch.bind(row, "blockIdx.x")


def _place(sch: Schedule, stage, held: set[str]) -> None:
    spatial, sums = _threads.loops(sch, stage, 1)
    count, length = _extent(sch, spatial), _extent(sch, sums)
    if sch.get(stage).writes[0].source.name in held:
        # what a row has one of may not lie among what TVM overlays
        sch.set_scope(stage, 0, "shared" if sums or count == 1 else "shared.dyn")
        spatial, sums = _threads.loops(sch, stage, 1)
    if length <= 1:
        _threads.share(sch, spatial, THREADS)
    elif length > count:
        _threads.share(sch, sums, THREADS)
    else:
        total = sch.cache_write(stage, 0, "local")
        spatial, _ = _threads.loops(sch, stage, 1)
        _, thread = sch.split(sch.fuse(*spatial), [None, THREADS])
        sch.bind(thread, "threadIdx.x")
        sch.reverse_compute_at(total, thread, preserve_unit_loops=True)


def _extent(sch: Schedule, loops: list[object]) -> int:
    return math.prod(int(sch.get(loop).extent) for loop in loops)
