"""hadamard on GPUs: a block of threads a row, its stages in shared memory; a part of a long row."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops.hadamard import BUTTERFLY, LIVE
from shiftadd_tvm.schedules.cuda import _threads

OPS = ("hadamard",)


def schedule(sch: Schedule, backend: Backend) -> None:
    """Cut a row that does not fit shared memory between the transform's blocks of inputs."""
    *stages, last = sch.get_child_blocks(sch.get_sblock("root"))
    row, inputs = sch.get_loops(last)
    steps = sum(sch.get(stage).name_hint.startswith(BUTTERFLY) for stage in stages)
    count = parts(int(sch.get(inputs).extent), 1 << steps, backend.shared)
    part, _ = sch.split(inputs, [count, None])
    for stage in reversed(stages):
        sch.compute_at(stage, part, preserve_unit_loops=True)
        sch.set_scope(stage, 0, "shared.dyn")
    for stage in (*stages, last):
        _threads.share(sch, sch.get_loops(stage)[2:])
    sch.bind(row, "blockIdx.x")
    sch.bind(part, "blockIdx.y")


def parts(inputs: int, block: int, shared: int) -> int:
    """Return the least number of parts, whole blocks each, that have room in `shared` bytes."""
    blocks = inputs // block
    fits = (n for n in range(1, blocks + 1) if blocks % n == 0 and LIVE * inputs // n <= shared)
    return next(fits, blocks)
