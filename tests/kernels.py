"""Compile one operator alone and run it here, to compare it with its NumPy reference."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import IRModule

from shiftadd_tvm import backend, pipeline
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP

PRESETS = [name for name, preset in backend.presets().items() if preset.runs_here()]


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
    module = op_module(op, te_function, arrays, symbolic)
    target = preset if isinstance(preset, Backend) else backend.load(preset or PRESETS[0])
    executable, _ = pipeline.build(module, target)
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
