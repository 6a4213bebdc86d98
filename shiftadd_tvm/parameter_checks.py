"""A Relax pass: drop the run-time checks of the parameters' types, once VMShapeLower has added them.

TVM checks every tensor of the parameter tuple on every call: half of all the calls that a decode step
makes, each with the tuple's whole type as its error text. Hosts check the parameters once, when they
open the artifact, and every kernel still checks the tensors that it is given.
"""

from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule

from shiftadd_tvm.relax_functions import bindings_of, rewritten, with_bindings

CHECKS = ("vm.builtin.check_tuple_info", "vm.builtin.check_tensor_info", "vm.builtin.match_shape")


@tvm.transform.module_pass(opt_level=0, name="DropParameterChecks")
class DropParameterChecks:
    """Rewrite every function whose last parameter is a tuple."""

    def transform_module(self, module: IRModule, context: object) -> IRModule:
        """Return the module without the checks."""
        return rewritten(module, lambda f: _without_checks(f) if _takes_tuple(f) else f)


def _takes_tuple(function: relax.Function) -> bool:
    return len(function.params) > 0 and isinstance(function.params[-1].ty, relax.TupleType)


def _without_checks(function: relax.Function) -> relax.Function:
    bundle, bindings = function.params[-1], bindings_of(function)
    members = {b.var for b in bindings if _is_member(b.value, bundle)}
    checks = [b for b in bindings if _is_check(b.value, {bundle, *members})]
    checked = {b.value.args[0] for b in checks}  # taken out of the tuple for the check alone
    dropped = {b.var for b in checks} | (checked - {bundle})
    return with_bindings(function, [b for b in bindings if b.var not in dropped])


def _is_member(value: Any, bundle: Any) -> bool:
    return isinstance(value, relax.TupleGetItem) and value.tuple_value.same_as(bundle)


def _is_check(value: Any, subjects: set[Any]) -> bool:
    return (
        isinstance(value, relax.Call)
        and isinstance(value.op, relax.ExternFunc)
        and value.op.global_symbol in CHECKS
        and value.args[0] in subjects
    )
