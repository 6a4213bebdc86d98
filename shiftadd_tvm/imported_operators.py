"""The operators of a graph that are not ours: fused as TVM fuses them, and scheduled for a CPU.

They come from TVM's importer (`function_graph.py`) as Relax operators without schedules. Here chains of
them become one kernel, and every kernel gets the plain schedule of a CPU: outputs to threads, sums
outside of the innermost run of outputs, which the compiler turns into vectors. Our own operators are
scheduled before, and stay as they are.
"""

import math
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.tirx import IntImm, PrimFunc

from shiftadd_tvm.ops import OP

OPAQUE = 8  # TVM's number of a pattern that is fused with nothing
SPATIAL, REDUCTION = 0, 2  # TVM's numbers of the kinds of block axes
PARALLEL = 1 << 15  # iterations of a kernel that are worth the start of threads
ROOT = "root"  # TVM's name of the block around all others
SCHEDULED = "tirx.is_scheduled"

PASSES = (
    relax.backend.DispatchSortScan,
    relax.transform.LegalizeOps,
    relax.transform.AnnotateTIROpPattern,
    relax.transform.FoldConstant,
    relax.transform.FuseOps,
    relax.transform.FuseTIR,
)


def fuse_and_schedule(module: IRModule, lanes: int) -> tuple[IRModule, int]:
    """Return the module with all other operators as scheduled kernels, and how many there are; `lanes`
    float32 numbers make a vector. To be called inside the target's scope."""
    ours = {v: f.with_attr("op_pattern", OPAQUE) if _ours(f) else f for v, f in module.functions_items()}
    module = IRModule(ours, attrs=module.attrs)
    module = tvm.transform.Sequential([step() for step in PASSES])(module)
    functions, count = {}, 0
    for variable, function in module.functions_items():
        if isinstance(function, PrimFunc) and not _ours(function):
            function, count = scheduled(function, lanes), count + 1
        functions[variable] = function
    return IRModule(functions, attrs=module.attrs), count


def _ours(function: Any) -> bool:
    attrs = function.attrs or {}
    return isinstance(function, PrimFunc) and (OP in attrs or SCHEDULED in attrs)


def scheduled(function: PrimFunc, lanes: int) -> PrimFunc:
    """Return a kernel with the plain schedule; where TVM refuses a step, that step is left out."""
    if function.body.block.name_hint != ROOT:  # one block of loops that nothing is known of: a scan
        return function.with_attr(SCHEDULED, True)
    sch = Schedule(IRModule({"main": function}))
    for block in sch.get_child_blocks(sch.get_sblock(ROOT)):
        if not _sums(sch, block) and _feeds_plain(sch, block):
            _attempt(sch.compute_inline, block)
    for block in sch.get_child_blocks(sch.get_sblock(ROOT)):
        _attempt(_spread, sch, block, lanes)
    return sch.mod["main"].with_attr(SCHEDULED, True)


def _attempt(step: Any, *arguments: Any) -> None:
    try:
        step(*arguments)
    except ScheduleError:
        pass  # what is refused is a matter of speed only


def _sums(sch: Schedule, block: Any) -> bool:
    return any(int(axis.iter_type) == REDUCTION for axis in sch.get(block).iter_vars)


def _feeds_plain(sch: Schedule, block: Any) -> bool:
    """Tell whether a block feeds others and none that sums, which would compute it again and again."""
    consumers = sch.get_consumers(block)
    return bool(consumers) and not any(_sums(sch, consumer) for consumer in consumers)


def _spread(sch: Schedule, block: Any, lanes: int) -> None:
    loops, axes = sch.get_loops(block), sch.get(block).iter_vars
    if len(loops) != len(axes) or not loops:
        return
    kinds = [int(axis.iter_type) for axis in axes]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == SPATIAL]
    sums = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == REDUCTION]
    if len(spatial) + len(sums) != len(loops) or not spatial:
        return
    *outer, last = spatial
    if sums:
        sch.reorder(*outer, *sums, last)
    extent = sch.get(last).extent
    whole = isinstance(extent, IntImm) and int(extent) % lanes == 0
    if outer:
        work, together = _work(sch, loops), sch.fuse(*outer)
        if work >= PARALLEL:
            sch.parallel(together)
    if sums:
        start = sch.decompose_reduction(block, sums[0])
        if whole:
            _vectorize(sch, sch.get_loops(start)[-1], lanes)
    if whole:
        _vectorize(sch, last, lanes)


def _work(sch: Schedule, loops: list[Any]) -> int:
    """Return the iterations of a nest, a size that varies counted as 1."""
    extents = (sch.get(loop).extent for loop in loops)
    return math.prod(int(extent) for extent in extents if isinstance(extent, IntImm))


def _vectorize(sch: Schedule, loop: Any, lanes: int) -> None:
    _, vector = sch.split(loop, [None, lanes])
    sch.vectorize(vector)
