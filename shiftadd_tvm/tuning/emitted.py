"""The function that compiling makes of an operator, by the shapes of its tensors alone."""

from collections.abc import Sequence
from typing import Any

from tvm import relax
from tvm.tirx import PrimFunc

from shiftadd_tvm.ops import OP


def emitted(op: str, compute: Any, tensors: Sequence[tuple[Sequence[Any], str]]) -> PrimFunc:
    """Return the PrimFunc that Relax makes of an operator for tensors of these (shape, dtype)."""
    builder = relax.BlockBuilder()
    inputs = [
        relax.Var(f"input{i}", relax.TensorType(shape, dtype))
        for i, (shape, dtype) in enumerate(tensors)
    ]
    with builder.function("main", inputs):
        result = builder.emit_te(compute, *inputs, primfunc_name_hint=op, primfunc_attrs={OP: op})
        builder.emit_func_output(result)
    functions = [f for _, f in builder.finalize().functions_items() if isinstance(f, PrimFunc)]
    return functions[0]
