"""Compile one operator alone and run it, to compare it with its NumPy reference.

It runs here, or in emulation if SHIFTADD_EMULATE names a preset (`make prove TARGET=PRESET`).
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from emulation import Program
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.tirx import IntImm

from shiftadd_tvm import backend, pipeline
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP

EMULATED = os.environ.get("SHIFTADD_EMULATE", "")
# a GPU's kernels are tested by tests/test_cuda_kernels.py
HERE = [n for n, preset in backend.presets().items() if preset.runs_here() and not preset.device]
PRESETS = [EMULATED] if EMULATED else HERE


def op_module(
    op: str, te_function: Callable[..., Any], arrays: Sequence[np.ndarray], symbolic: Sequence[int]
) -> IRModule:
    """Return a Relax module whose `main` is `op` alone; the arrays give shapes and dtypes.

    The first axis of the arrays listed in `symbolic` is the variable n.
    """
    n = tirx.Var("n", "int64")
    inputs = []
    for index, array in enumerate(arrays):
        first = [n] if index in symbolic else [int(size) for size in array.shape[:1]]
        shape = [*first, *(int(size) for size in array.shape[1:])]
        inputs.append(relax.Var(f"input{index}", relax.TensorType(shape, str(array.dtype))))
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_te(
                te_function, *inputs, primfunc_name_hint=op, primfunc_attrs={OP: op}
            )
            output = builder.emit_output(result)
        builder.emit_func_output(output)
    return builder.finalize()


def op_function(
    op: str, te_function: Callable[..., Any], arrays: Sequence[np.ndarray], symbolic: Sequence[int]
) -> tirx.PrimFunc:
    """Return `op` as its tensor expression says it, for arrays as `op_module` takes them."""
    functions = op_module(op, te_function, arrays, symbolic).functions_items()
    (found,) = (function for _, function in functions if isinstance(function, tirx.PrimFunc))
    return found


def _results(function: tirx.PrimFunc, given: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return arrays as `function` fills them for the arrays `given`."""
    sizes = {
        size.name: array.shape[axis]
        for buffer, array in zip(function.params, given, strict=False)
        for axis, size in enumerate(buffer.shape)
        if not isinstance(size, IntImm)
    }
    size_of = lambda size: int(size) if isinstance(size, IntImm) else sizes[size.name]
    return [
        np.empty([size_of(size) for size in buffer.shape], str(buffer.dtype))
        for buffer in function.params[len(given) :]
    ]


def compile_op(
    op: str,
    te_function: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    *,
    symbolic: Sequence[int] = (),
    preset: str | Backend = "",
) -> Callable[..., Any]:
    """Return `op` compiled by our pipeline, as a function of arrays like `arrays`.

    It returns an array, or a list of them where the operator has several outputs.
    """
    target = preset if isinstance(preset, Backend) else backend.load(preset or PRESETS[0])
    if target.name == EMULATED:
        function = op_function(op, te_function, arrays, symbolic)
        program = Program({"kernel": function}, target)

        def emulate(*given: np.ndarray) -> Any:
            found = program.run("kernel", given, _results(function, given))
            return found[0] if len(found) == 1 else found

        return emulate
    executable, _ = pipeline.build(op_module(op, te_function, arrays, symbolic), target)
    machine = relax.VirtualMachine(executable, tvm.cpu())

    def run(*given: np.ndarray) -> Any:
        result = machine["main"](*(tvm.runtime.tensor(array) for array in given))
        if isinstance(result, tvm.runtime.Tensor):
            return result.numpy()
        return [tensor.numpy() for tensor in result]

    return run


def run_op(
    op: str,
    te_function: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    *,
    symbolic: Sequence[int] = (),
    preset: str | Backend = "",
) -> Any:
    """Compile `op` and return what it computes for `arrays`, as `compile_op` says."""
    return compile_op(op, te_function, arrays, symbolic=symbolic, preset=preset)(*arrays)


def compile_tir(function: tirx.PrimFunc, preset: str = "") -> Callable[..., None]:
    """Return a TIR operator compiled with its schedule, as a function that updates its arrays."""
    preset_ = backend.load(preset or PRESETS[0])
    if preset_.name == EMULATED:
        program = Program({"kernel": function}, preset_)

        def emulate(*given: np.ndarray | int) -> None:
            arrays = [value for value in given if isinstance(value, np.ndarray)]
            found = program.call("kernel", given, len(given))
            for before, after in zip(arrays, found, strict=True):
                before[...] = after

        return emulate
    module = IRModule({"main": function.with_attr("global_symbol", "main")})
    scheduled, _ = pipeline.apply_schedules(module, preset_)
    compiled = tvm.compile(scheduled, tvm.target.Target(preset_.target))

    def run(*given: np.ndarray | int) -> None:
        arrays = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in given]
        compiled["main"](*arrays)
        for before, after in zip(given, arrays, strict=True):
            if isinstance(before, np.ndarray):
                before[...] = after.numpy()

    return run


def run_tir(function: tirx.PrimFunc, *given: np.ndarray | int, preset: str = "") -> None:
    """Compile a TIR operator and run it on arrays (updated in place) and numbers."""
    compile_tir(function, preset)(*given)
