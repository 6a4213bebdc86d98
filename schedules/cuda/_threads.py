"""How loops become blocks and threads of a GPU."""

from collections.abc import Sequence

from tvm.s_tir import Schedule

THREADS = 256
REDUCTION = 2  # of TVM's kinds of axes


def is_reduction(sch: Schedule, stage) -> bool:
    """Tell whether a block sums, or looks for the largest."""
    return any(int(axis.iter_type) == REDUCTION for axis in sch.get(stage).iter_vars)


def spread(sch: Schedule, loops: Sequence[object], threads: int = THREADS) -> None:
    """Give the iterations of `loops` to blocks of `threads` threads."""
    block, thread = sch.split(sch.fuse(*loops), [None, threads])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")


def share(sch: Schedule, loops: Sequence[object], threads: int = THREADS) -> None:
    """Give the iterations of `loops`, inside a block, to its threads in turn."""
    _, thread = sch.split(sch.fuse(*loops), [None, threads])
    sch.bind(thread, "threadIdx.x")


def kernel(sch: Schedule, stage, threads: int = THREADS) -> None:
    """Make a stage a kernel of its own: an output a thread, which sums alone."""
    axes = [int(axis.iter_type) == REDUCTION for axis in sch.get(stage).iter_vars]
    loops = sch.get_loops(stage)
    spatial = [loop for loop, reduced in zip(loops, axes, strict=True) if not reduced]
    sums = [loop for loop, reduced in zip(loops, axes, strict=True) if reduced]
    spatial = spatial or [sch.add_unit_loop(stage)]
    sch.reorder(*spatial, *sums)
    spread(sch, spatial, threads)
    if sums:
        sch.decompose_reduction(stage, sums[0])
