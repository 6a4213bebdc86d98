"""A Relax pass for GPUs: a decode step's kernels become one CUDA graph, which the runtime captures once.

    decode_b1(ids, ..., key, parameters)
        get_cached_alloc(decode_b1_memory)                          -> planned memory
        run_or_capture(decode_b1_captured, all arguments, key)      -> what the last kernels read
        the kernels that write the result

The first call with a key runs the captured function, and once more to capture it; later ones launch the
graph. A graph's kernels hold the addresses of their first call, so the key is a list of numbers that
differs where an argument lies elsewhere or has another shape: the host makes it. Planned memory is kept
for good, since graphs point into it. The result is not a part of it: a step may not write over that of
the step before.
"""

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import IRModule, Op
from tvm.relax.analysis import free_vars

from shiftadd_tvm.relax_functions import bindings_of

PREFIX = "decode_b"
RUN, KEEP = (f"vm.builtin.cuda_graph.{name}" for name in ("run_or_capture", "get_cached_alloc"))
OUTPUT, STORAGE = "relax.builtin.alloc_tensor", "relax.memory.alloc_storage"


def is_captured(name: str) -> bool:
    """Tell whether an exported function takes a key before its parameters, where a GPU computes."""
    return name.startswith(PREFIX)


@tvm.transform.module_pass(opt_level=0, name="CaptureSteps")
class CaptureSteps:
    """Rewrite the decode functions of a module whose memory is planned."""

    def transform_module(self, module: IRModule, context: object) -> IRModule:
        """Return the module with a captured function beside each decode function."""
        builder = relax.BlockBuilder(IRModule(dict(module.functions_items()), attrs=module.attrs))
        steps = sorted(v.name_hint for v in module.get_global_vars() if is_captured(v.name_hint))
        for index, name in enumerate(steps):
            variable = module.get_global_var(name)
            step = _Step(module[variable])
            memory = builder.add_func(step.memory(), f"{name}_memory")
            captured = builder.add_func(step.captured(), f"{name}_captured")
            builder.update_func(variable, step.launching(memory, captured, index))
        return builder.get()


class _Step:
    """A decode function, cut before the memory of its result: what is captured, and the rest."""

    def __init__(self, step: relax.Function) -> None:
        self._step, bindings = step, bindings_of(step)
        cut = next(i for i, binding in enumerate(bindings) if _calls(binding.value, OUTPUT))
        self._storages = [b for b in bindings[:cut] if _calls(b.value, STORAGE)]
        self._first = [b for b in bindings[:cut] if not _calls(b.value, STORAGE)]
        self._rest = bindings[cut:]
        unbound = free_vars(relax.SeqExpr([relax.BindingBlock(self._rest)], step.body.body))
        self._read = [variable for variable in unbound if variable not in set(step.params)]
        self._kept = relax.Tuple([binding.var for binding in self._storages])

    def memory(self) -> relax.Function:
        """Return the function that allocates what kernels of the step are planned in."""
        return _function([], self._storages, self._kept, self._step)

    def captured(self) -> relax.Function:
        """Return the function of that memory and the step's arguments that gives what the rest reads."""
        memory = relax.Var("memory", self._kept.ty)
        *inputs, parameters = self._step.params
        bindings = [*_taken(memory, self._kept), *self._first]
        return _function([*inputs, memory, parameters], bindings, relax.Tuple(self._read), self._step)

    def launching(self, memory: Any, captured: Any, index: int) -> relax.Function:
        """Return the step that launches the graph, then does the rest."""
        key = relax.Var("key", relax.ShapeType(ndim=-1))
        kept, states = (relax.Var("kept", self._kept.ty), relax.Var("states", relax.Tuple(self._read).ty))
        *inputs, parameters = self._step.params
        number = tirx.const(index, "int64")
        arguments = relax.Tuple([*inputs, kept, parameters])
        bindings = [
            relax.VarBinding(kept, _builtin(KEEP, [memory, number], kept.ty)),
            relax.VarBinding(states, _builtin(RUN, [captured, arguments, number, key], states.ty)),
            *_taken(states, self._read),
            *self._rest,
        ]
        body = relax.SeqExpr([relax.BindingBlock(bindings)], self._step.body.body)
        params = [*inputs, key, parameters]
        return relax.Function(params, body, self._step.ret_ty, self._step.is_pure, self._step.attrs)


def _function(
    params: Sequence[relax.Var], bindings: Sequence[Any], result: relax.Tuple, of: relax.Function
) -> relax.Function:
    """Return a private function of its own variables, pure or not as `of`."""
    bound = relax.Var("result", result.ty)
    block = relax.BindingBlock([*bindings, relax.VarBinding(bound, result)])
    function = relax.Function(
        params, relax.SeqExpr([block], bound), result.ty, of.is_pure, of.attrs
    ).without_attr("global_symbol")
    return relax.utils.copy_with_new_vars(function)


def _taken(whole: relax.Var, members: Sequence[relax.Var]) -> list[relax.VarBinding]:
    return [relax.VarBinding(v, relax.TupleGetItem(whole, i)) for i, v in enumerate(members)]


def _builtin(name: str, arguments: Sequence[Any], type_: Any) -> relax.Call:
    op = Op.get("relax.call_builtin_with_ctx")
    return relax.Call(op, [relax.ExternFunc(name), relax.Tuple(arguments)], ty_args=[type_])


def _calls(value: Any, name: str) -> bool:
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == name
