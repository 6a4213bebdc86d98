"""A Relax pass: make each view of planned memory once.

Planned memory is a few storages, and every operator's result is a tensor made on one of them. A decoder
repeats its block, so that most of these tensors equal an earlier one: the same storage, offset, shape and
dtype. One tensor serves them all, since a tensor on a planned storage is a view and holds nothing itself.
"""

from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm_ffi import structural_equal

from shiftadd_tvm.relax_functions import bindings_of, rewritten, with_bindings

ALLOC = "relax.memory.alloc_tensor"


@tvm.transform.module_pass(opt_level=0, name="ShareTensors")
class ShareTensors:
    """Bind every repeated view to the first one; `CanonicalizeBindings` then reads that one."""

    def transform_module(self, module: IRModule, context: object) -> IRModule:
        """Return the module with each view made once."""
        return rewritten(module, _shared)


def _shared(function: relax.Function) -> relax.Function:
    views: dict[Any, list[relax.VarBinding]] = {}  # by storage: few differ
    return with_bindings(function, [_once(binding, views) for binding in bindings_of(function)])


def _once(binding: Any, views: dict[Any, list[relax.VarBinding]]) -> Any:
    value = binding.value
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") != ALLOC:
        return binding
    made = views.setdefault(value.args[0], [])
    for first in made:
        if structural_equal(first.value, value):
            return relax.VarBinding(binding.var, first.var)
    made.append(binding)
    return binding
