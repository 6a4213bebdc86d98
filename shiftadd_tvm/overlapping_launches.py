"""Launches that overlap, on GPUs from sm_90 on: a kernel begins while the one before it ends.

CUDA calls it programmatic dependent launch. Every kernel lets the next one begin at once, and waits for
all before it to have ended and written, before it reads what they wrote. What lies before the wait reads
parameters alone, which nobody writes: look-ups ask for their planes there. A kernel that has a wait of
its own says so by `WAITS`; into all others the pipeline puts one at the top.
"""

from collections.abc import Callable, Iterable
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import IRModule

from shiftadd_tvm.ops import WAITS
from shiftadd_tvm.schedules.cuda._instructions import LAUNCH_NEXT, WAIT

PIPELINE = "shiftadd_overlapping"
PARAMS = "tirx.kernel_launch_params"
TAG = "tirx.use_programtic_dependent_launch"  # as TVM spells it
CALLING, KERNEL = "calling_conv", 2  # TVM's number of what a host launches
LAST = "tirx.use_dyn_shared_memory"  # of the parameters, by TVM's rule


def register(module: IRModule) -> str:
    """Return the name of TVM's pipeline for the kernels of a lowered module, whose launches overlap."""
    waiting = {
        f"{variable.name_hint}_kernel"
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc) and (function.attrs or {}).get(WAITS)
    }

    def factory() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
        lower, host, device = tvm.tirx.get_tir_pipeline("default")
        return tvm.transform.Sequential([lower, _overlapping(waiting)]), host, device

    tvm.tirx.register_tir_pipeline(PIPELINE, factory)
    return PIPELINE


def _overlapping(waiting: Iterable[str]) -> Any:
    """Return the pass that marks kernels, and puts the wait into those that are not among `waiting`."""

    @tvm.transform.module_pass(opt_level=0, name="OverlapLaunches")
    def overlap(module: IRModule, context: object) -> IRModule:
        functions = dict(module.functions_items())
        for variable, function in module.functions_items():
            if int((function.attrs or {}).get(CALLING, 0)) == KERNEL:
                marked = function.with_attr(PARAMS, _with_tag(function.attrs[PARAMS]))
                own = variable.name_hint in waiting
                functions[variable] = marked if own else _begun_by_waiting(marked)
        return IRModule(functions, attrs=module.attrs)

    return overlap


def _with_tag(params: Iterable[Any]) -> list[str]:
    """Return the launch parameters with the tag; a size of shared memory comes last."""
    names = [str(name) for name in params]
    return [*(n for n in names if n != LAST), TAG, *(n for n in names if n == LAST)]


def _begun_by_waiting(function: tirx.PrimFunc) -> tirx.PrimFunc:
    first = [tirx.Evaluate(LAUNCH_NEXT()), tirx.Evaluate(WAIT())]
    return function.with_body(tirx.SeqStmt([*first, function.body]))
