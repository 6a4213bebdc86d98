"""What our Relax passes do alike: go through a module's Relax functions, and rewrite one's bindings."""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax
from tvm.ir import IRModule


def rewritten(
    module: IRModule, rewrite: Callable[[relax.Function], relax.Function]
) -> IRModule:
    """Return the module with every Relax function rewritten, and the kernels as they are."""
    functions = {
        variable: rewrite(function) if isinstance(function, relax.Function) else function
        for variable, function in module.functions_items()
    }
    return IRModule(functions, attrs=module.attrs)


def bindings_of(function: relax.Function) -> list[Any]:
    """Return the bindings of a function without dataflow, in order."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def with_bindings(function: relax.Function, bindings: Sequence[Any]) -> relax.Function:
    """Return the function with other bindings before its result."""
    body = relax.SeqExpr([relax.BindingBlock(bindings)], function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
