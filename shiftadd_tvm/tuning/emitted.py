"""The function that compiling makes of an operator, by the shapes of its tensors alone; and back."""

from collections.abc import Sequence
from typing import Any

from tvm import relax
from tvm.tirx import PrimFunc

from shiftadd_tvm.ops import OP


def sizes_of(function: PrimFunc) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
    """Return the shapes of a separable look-up's tensors, and what they say of any such look-up."""
    tensors = [tuple(int(size) for size in parameter.shape) for parameter in function.params]
    _, _, _, plane_terms, row_terms, *bias, result = tensors
    common = {"outputs": result[1], "tokens": result[0], "bias": bool(bias)}
    return tensors, {**common, "row_terms": row_terms[0], "plane_terms": plane_terms[2]}


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
