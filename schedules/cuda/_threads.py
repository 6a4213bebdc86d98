"""How loops become blocks and threads of a GPU."""

from collections.abc import Sequence

from tvm.s_tir import Schedule

THREADS = 256
REDUCTION = 2  # of TVM's kinds of axes


def is_reduction(sch: Schedule, stage) -> bool:
    """Tell whether a block sums, or looks for the largest."""
    return any(map(_is_sum, sch.get(stage).iter_vars))


def _is_sum(axis) -> bool:
    return int(axis.iter_type) == REDUCTION


def loops(sch: Schedule, stage, outer: int = 0) -> tuple[list[object], list[object]]:
    """Return the loops of a stage's results and those of its sums, inside of `outer` loops; a unit loop
    where there is none."""
    inner = sch.get_loops(stage)[outer:]
    if not inner:
        return [sch.add_unit_loop(stage)], []
    axes = sch.get(stage).iter_vars[outer:]  # a unit loop that was added has none
    sums = [loop for loop, axis in zip(inner, axes, strict=False) if _is_sum(axis)]
    return [loop for loop in inner if loop not in sums], sums


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
    spatial, sums = loops(sch, stage)
    spatial = spatial or [sch.add_unit_loop(stage)]
    sch.reorder(*spatial, *sums)
    spread(sch, spatial, threads)
    if sums:
        sch.decompose_reduction(stage, sums[0])
