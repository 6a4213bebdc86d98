"""A Relax pass for GPUs: what makes an activation ready to be looked up becomes one kernel.

    x + y, norm, Hadamard transform, shift, lut_bits_build          -> one call of `produce`
    join of attention's parts, Hadamard transform, lut_bits_build   -> likewise

A chain ends where planes' activations are built, and begins where a value has other readers, or two
sources; a sum that is read again (the residual) is an output of the kernel as well. A layer has four
chains, so that a step launches twelve kernels less for each. `schedules/cuda/produce.py` is the schedule.
One block of threads makes a row; a long row without a sum over it, such as down_proj's, is made by
many, in two kernels: its function has two results more, the row and the peaks of its runs.
The function carries what it computes under `CHAIN`, as JSON:

    calls    [operator, its key, which of the tensors that the function is given are its operands];
             the first operand of all but the first call is what the call before gives, and not listed
    inputs   of a row
    shared   whether the first result is the sum that others read too
    apart    whether the first two results are the row (M, K) float32, as the last call reads it, and of
             each run of 256 inputs the largest magnitude (M, R), uint32
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.tirx import PrimFunc

from shiftadd_tvm.ops import CHAIN, KEY, OP, lut
from shiftadd_tvm.ops.hadamard import LIVE
from shiftadd_tvm.relax_functions import bindings_of
from shiftadd_tvm.schedules.cuda._chain import SHARES
from shiftadd_tvm.schedules.cuda._runs import SPAN, TURNS, WARPS

NAME = "produce"
ENDS = ("lut_bits_build", "lut_bytes_build", "lut_tables_build", "lut_bits_group_build")
LINKS = ("shift", "hadamard", "rms_norm", "layer_norm")  # of the value that is their first operand
HELD = ("lut_bits_build", "lut_bits_group_build", "lut_tables_build")  # made without shared memory
REGISTERS = SPAN * WARPS * TURNS  # inputs of a row that threads hold without memory, on every GPU
BEGINS = ("add", "activate_mul", "activate", "join")
WHOLE = ("rms_norm", "layer_norm", "join")  # what looks at more than a run of a row
LONG = SPAN * WARPS  # inputs: of more than one run a warp, two kernels of many blocks take less time


@tvm.transform.module_pass(opt_level=0, name="FuseProducers")
class FuseProducers:
    """Rewrite the functions of a module whose operators are not scheduled yet, for a GPU whose blocks of
    threads share so many bytes: rows that are longer stay as they are."""

    def __init__(self, shared: int) -> None:
        self._most = shared // LIVE

    def transform_module(self, module: IRModule, context: object) -> IRModule:
        """Return the module with every chain as one function."""
        builder = relax.BlockBuilder(IRModule(dict(module.functions_items()), attrs=module.attrs))
        known: dict[object, relax.GlobalVar] = {}
        chains: dict[str, str] = {}  # of a function's name
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                fused = _Fusion(module, function, builder, known, chains).rewritten(self._most)
                if fused is not None:
                    builder.update_func(variable, fused)
        if not known:
            return module
        return _marked(relax.transform.FuseTIR()(builder.get()), chains)


def _marked(module: IRModule, chains: dict[str, str]) -> IRModule:
    functions = dict(module.functions_items())
    for variable, function in module.functions_items():
        if isinstance(function, PrimFunc) and variable.name_hint in chains:
            marks = {OP: NAME, CHAIN: chains[variable.name_hint]}
            functions[variable] = function.with_attrs(marks)
    return IRModule(functions, attrs=module.attrs)


@dataclass
class _Chain:
    """Calls that become one, in order; of the first one the sum, where others read it too."""

    calls: list[Any]  # bindings
    shared: list[relax.Var] = field(default_factory=list)


class _Fusion:
    """What one function's chains are, and the function that calls them."""

    def __init__(
        self,
        module: IRModule,
        function: relax.Function,
        builder: relax.BlockBuilder,
        known: dict[object, relax.GlobalVar],
        chains: dict[str, str],
    ) -> None:
        self._chains = chains
        self._module, self._function, self._builder, self._known = module, function, builder, known
        self._bindings = bindings_of(function)
        self._bound = {binding.var: binding for binding in self._bindings}
        self._readers: dict[Any, list[int]] = {}
        for index, binding in enumerate(self._bindings):
            for variable in relax.analysis.free_vars(binding.value):
                self._readers.setdefault(variable, []).append(index)

    def rewritten(self, most: int) -> relax.Function | None:
        """Return the function with its chains of at most so many inputs fused; None without any."""
        ends = [i for i, b in enumerate(self._bindings) if self._op(b) in ENDS]
        found = {index: self._chain(index) for index in ends}
        chains = {i: c for i, c in found.items() if len(c.calls) > 1 and self._fits(c, most)}
        if not chains:
            return None
        gone = {id(call) for chain in chains.values() for call in chain.calls}
        bindings = []
        for index, binding in enumerate(self._bindings):
            if index in chains:
                bindings += self._called(chains[index])
            elif id(binding) not in gone:
                bindings.append(binding)
        body = relax.SeqExpr([relax.DataflowBlock(bindings)], self._function.body.body)
        f = self._function
        return relax.Function(f.params, body, f.ret_ty, f.is_pure, f.attrs)

    def _fits(self, chain: _Chain, most: int) -> bool:
        """Tell whether a row has at most as many inputs as fit shared memory, or registers."""
        if self._by_runs(chain) and self._op(chain.calls[-1]) in HELD and self._shares(chain) <= SHARES:
            most = max(most, REGISTERS)
        return self._apart(chain) or _inputs(chain.calls[-1]) <= most

    def _by_runs(self, chain: _Chain) -> bool:
        """Tell whether each Hadamard transform lies in one run of a warp."""
        return all(key[0] <= SPAN for op, key, _ in self._calls(chain) if op == "hadamard")

    def _shares(self, chain: _Chain) -> int:
        """Return of how many shares of heads' weights attention's parts are joined."""
        if self._op(chain.calls[0]) != "join":
            return 0
        _, parts, _, heads = chain.calls[0].value.args[1].fields[1].ty.shape
        return int(parts) * int(heads)

    def _apart(self, chain: _Chain) -> bool:
        """Tell whether a row is long, and its runs can be made ready each without the others."""
        whole = {self._op(call) for call in chain.calls} & {*WHOLE}
        long = _inputs(chain.calls[-1]) > LONG
        return long and not whole and not chain.shared and self._by_runs(chain)

    def _op(self, binding: Any) -> str:
        value = binding.value
        if not isinstance(value, relax.Call) or getattr(value.op, "name", "") != "relax.call_tir":
            return ""
        return str((self._module[value.args[0]].attrs or {}).get(OP, ""))

    def _chain(self, end: int) -> _Chain:
        chain = _Chain([self._bindings[end]])
        while (first := self._bound.get(chain.calls[0].value.args[1].fields[0])) is not None:
            op, readers = self._op(first), self._readers[first.var]
            if op not in (*LINKS, *BEGINS):
                break
            if len(readers) > 1:
                # others may read the sum where they come later than the one call that gives it
                if op == "add" and min(set(readers) - {self._index(chain.calls[0])}) > end:
                    chain.calls.insert(0, first)
                    chain.shared.append(first.var)
                break
            chain.calls.insert(0, first)
            if op in BEGINS:
                break
        return chain

    def _index(self, binding: Any) -> int:
        return next(i for i, one in enumerate(self._bindings) if one is binding)

    def _called(self, chain: _Chain) -> list[Any]:
        """Return the bindings that call the function of a chain."""
        operands = _operands(chain.calls)
        function = self._function_of(chain, operands)
        whole = relax.DataflowVar("produced", function.ret_ty)
        variable = self._variable(chain, function)
        bindings = [relax.VarBinding(whole, relax.Call(variable, operands))]
        members = [*chain.shared, *(relax.DataflowVar("built", t) for t in chain.calls[-1].var.ty.fields)]
        first = len(function.ret_ty.fields) - len(members)  # nobody else reads those before
        for i, member in enumerate(members):
            bindings.append(relax.VarBinding(member, relax.TupleGetItem(whole, first + i)))
        pair = relax.Tuple(members[len(chain.shared) :])
        return [*bindings, relax.VarBinding(chain.calls[-1].var, pair)]

    def _variable(self, chain: _Chain, function: relax.Function) -> relax.GlobalVar:
        """Return the function in the module: a decoder repeats each chain in every block."""
        names: dict[Any, int] = {}
        number = {v: names.setdefault(v, len(names)) for c in chain.calls for v in _all(c)}
        wiring = tuple((c.value.args[0].name_hint, *(number[v] for v in _all(c))) for c in chain.calls)
        key = (wiring, len(chain.shared))
        if key not in self._known:
            self._known[key] = self._builder.add_func(function, NAME)
            self._chains[self._known[key].name_hint] = self._described(chain)
        return self._known[key]

    def _described(self, chain: _Chain) -> str:
        """Return what a chain computes, as the docstring of the module has it."""
        inputs = _inputs(chain.calls[-1])
        known = {"calls": self._calls(chain), "inputs": inputs, "shared": bool(chain.shared)}
        return json.dumps(known | {"apart": self._apart(chain)})

    def _calls(self, chain: _Chain) -> list[tuple[str, list[Any], list[int]]]:
        place = {variable: index for index, variable in enumerate(_operands(chain.calls))}
        calls = []
        for call in chain.calls:
            attrs = self._module[call.value.args[0]].attrs
            at = [place[v] for v in call.value.args[1].fields if v in place]
            calls.append((str(attrs[OP]), json.loads(str(attrs.get(KEY, "[]"))), at))
        return calls

    def _function_of(self, chain: _Chain, operands: Sequence[relax.Var]) -> relax.Function:
        """Return the chain as a function that TVM makes one kernel's loops of."""
        new = {v: relax.Var(f"p{i}", v.ty) for i, v in enumerate(operands)}
        bindings = []
        for call in chain.calls:
            given = relax.Tuple([new[v] for v in call.value.args[1].fields])
            new[call.var] = relax.DataflowVar(call.var.name, call.var.ty)
            value = call.value
            again = relax.Call(value.op, [value.args[0], given], value.attrs, value.ty_args)
            bindings.append(relax.VarBinding(new[call.var], again))
        built = chain.calls[-1].var
        parts = [relax.DataflowVar(f"built{i}", type_) for i, type_ in enumerate(built.ty.fields)]
        bindings += [
            relax.VarBinding(part, relax.TupleGetItem(new[built], i)) for i, part in enumerate(parts)
        ]
        before = [new[v] for v in chain.shared]
        if self._apart(chain):
            row = new[chain.calls[-1].value.args[1].fields[0]]
            found = self._builder.normalize(self._builder.call_te(lut.peaks, row, SPAN))
            peaks = relax.DataflowVar("peaks", found.ty)
            bindings.append(relax.VarBinding(peaks, found))
            before = [row, peaks]
        result = relax.Tuple([*before, *parts])
        out = relax.Var("out", result.ty)
        block = relax.DataflowBlock([*bindings, relax.VarBinding(out, result)])
        params = [new[v] for v in operands]
        function = relax.Function(params, relax.SeqExpr([block], out), result.ty, True)
        return function.with_attr("Primitive", True)


def _inputs(call: Any) -> int:
    return int(call.value.args[1].fields[0].ty.shape[1])


def _all(call: Any) -> list[relax.Var]:
    return [*call.value.args[1].fields, call.var]


def _operands(calls: Sequence[Any]) -> list[relax.Var]:
    """Return what a chain reads and does not make, each once, in order."""
    made = {call.var for call in calls}
    given = (v for call in calls for v in call.value.args[1].fields)
    return list(dict.fromkeys(v for v in given if v not in made))
