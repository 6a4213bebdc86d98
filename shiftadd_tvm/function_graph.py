"""From a packed ONNX graph to a Relax module: one function `main`, its linears by our operators.

TVM's importer makes Relax of the graph. Where it emits a product with a linear's weight, this module
emits rotation, shift and look-up instead (`layers.linears`), once for all linears that read one
activation. Tensors of the graph that are larger than `SMALL` become parameters; smaller ones, such as
axes and factors, stay in the code.

    main(inputs of the graph, parameters)   -> the output, or a tuple of the outputs
"""

import contextlib
import functools
import io
import math
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tvm import relax, tirx
from tvm.ir import IRModule, Op
from tvm.relax.frontend.onnx import from_onnx, onnx_frontend

from shiftadd_tvm import layers, parameters, pipeline
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.onnx_folding import shapes
from shiftadd_tvm.onnx_packed import WEIGHT, PackedGraph

FUNCTION = "main"
SMALL = 64  # elements of a tensor that stays in the code
MOST_LOOKED_UP = 4  # rows of an activation: of more, the planes are widened into dense panels
TAKE = Op.get("relax.take")
CONSTANT = "graph."  # what precedes a tensor's name in the graph as a parameter

Array = np.ndarray
Expr = Any


def check_operators(model: onnx.ModelProto, source: object) -> None:
    """Raise `UnsupportedError` that names every operator which TVM's importer does not know."""
    known = {*onnx_frontend._get_convert_map(), "If"}
    missing = {
        f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in _nodes(model.graph)
        if node.domain not in ("", "ai.onnx") or node.op_type not in known
    }
    if missing:
        raise UnsupportedError(
            f"{source} has operators that are not supported: {', '.join(sorted(missing))}; export it "
            "without them."
        )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def imported(model: onnx.ModelProto, source: object) -> IRModule:
    """Return the graph as TVM's importer has it, large tensors as parameters behind the inputs, in
    the order of its attribute `params`; `UnsupportedError` for what it cannot convert."""
    check_operators(model, source)
    words = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(words):
            warnings.simplefilter("ignore")
            module = from_onnx(
                _for_import(model), keep_params_in_input=True, sanitize_input_names=False
            )
    except Exception as error:  # noqa: BLE001  a converter raises anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        where = next(iter(words.getvalue().splitlines()), "")[:120]
        raise UnsupportedError(
            f"{source} cannot be converted: {reason} {where}; export it with fixed sizes where it can "
            "have them, or with another opset."
        ) from None
    return module


def _for_import(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as the importer wants it: small tensors as Constant nodes, which it looks
    into, and the sizes of a Resize known where only its batch varies (it reads no more of them)."""
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    graph, inferred = wanted.graph, shapes(model)
    nodes, tensors = [], []
    for tensor in graph.initializer:
        small = math.prod(tensor.dims) <= SMALL
        if small:
            nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            tensors.append(tensor)
    for node in graph.node:
        sizes = inferred.get(node.output[0]) if node.op_type == "Resize" else None
        if sizes and len(node.input) > 3 and None not in sizes[2:]:
            name = f"{node.output[0]}.sizes"
            value = numpy_helper.from_array(np.array([size or 1 for size in sizes], np.int64))
            nodes.append(helper.make_node("Constant", [], [name], value=value))
            node.input[3] = name
        nodes.append(node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(tensors)
    graph.node.extend(nodes)
    return wanted


class FunctionGraph:
    """The Relax function of one packed graph, and the parameters that it takes."""

    def __init__(self, model: PackedGraph, rows: int, activations: str) -> None:
        """Import the graph; `rows` and `activations` as in `parameters.groups`."""
        self.graph = model.graph()
        self._module = imported(self.graph, model.path)
        self._main = self._module["main"]
        self._groups = parameters.groups(model, rows, activations)
        self._group_of = {name: self._groups[model.group(name)[0]] for name in model.linears()}
        self._activations = activations
        count = int(self._main.attrs["num_input"])
        weights = {name + WEIGHT: name for name in model.linears()}
        given, kept = self._main.params[:count], self._main.params[count:]
        self.inputs = [v for v in given if v.name not in weights]
        self._weights = {v: weights[v.name] for v in given if v.name in weights}
        used = _used(self._main)
        values = zip(kept, self._main.attrs["params"], strict=True)
        self._kept = {v: value.numpy() for v, value in values if v in used}
        self.parameters = [*parameters.of_groups(model, self._groups, rows), *self._constants()]

    def _constants(self) -> Iterator[parameters.Parameter]:
        for variable, value in self._kept.items():
            read = lambda v=value: v
            name = CONSTANT + variable.name
            yield parameters.Parameter(name, value.shape, str(value.dtype), read)

    def build(self) -> IRModule:
        """Return the module with the function `main`."""
        types = {p.name: relax.TensorType(p.shape, p.dtype) for p in self.parameters}
        b = layers.Builder(types)
        with b.function(FUNCTION, self.inputs) as result:
            for variable in self._kept:
                value = b.parameter(CONSTANT + variable.name)
                b.blocks.emit_normalized(relax.VarBinding(variable, value))
            self._made: dict[tuple[str, Expr], dict[str, Expr]] = {}
            self._rows: dict[str, Expr] = {}
            for block in self._main.body.blocks:
                for binding in block.bindings:
                    self._emit(b, binding)
            result(self._main.body.body)
        return b.blocks.finalize().with_attr(pipeline.IMPORTED, True)

    def _emit(self, b: layers.Builder, binding: Expr) -> None:
        value = binding.value
        product = isinstance(value, relax.Call) and len(value.args) == 2
        if product and value.args[1] in self._weights:
            linear = self._linear(b, value.args[0], self._weights[value.args[1]])
            binding = relax.VarBinding(binding.var, linear)
        elif isinstance(value, relax.Call) and value.op == TAKE:
            # the importer's way of looking rows up would read past the end of a table
            bounded = relax.op.take(*value.args, axis=value.attrs.axis, mode="clip")
            binding = relax.VarBinding(binding.var, b.blocks.normalize(bounded))
        b.blocks.emit_normalized(binding)

    def _linear(self, b: layers.Builder, x: Expr, name: str) -> Expr:
        """Return x (..., K) times the transposed weight of a linear, (..., N)."""
        group = self._group_of[name]
        key = group.leader, x
        if key not in self._made:
            self._made[key] = self._products(b, x, group)
        return self._made[key][name]

    def _products(self, b: layers.Builder, x: Expr, group: layers.Group) -> dict[str, Expr]:
        """Return the outputs (..., N) of each linear of a group by name."""
        *outer, inputs = x.ty.shape.values
        rows = functools.reduce(operator.mul, outer)
        flat = b.blocks.emit(relax.op.reshape(x, (rows, inputs)))
        few = isinstance(rows, tirx.IntImm) and int(rows) <= MOST_LOOKED_UP
        if not few:  # kernels know a number of rows that varies by a variable of its own
            count = self._rows.setdefault(str(rows), tirx.Var(f"n{len(self._rows)}", "int64"))
            flat = b.blocks.match_cast(flat, relax.TensorType((count, inputs), "float32"))
        columns = layers.linears(b, flat, group, self._activations, many=not few)
        names = [name for stack in group.stacks for name in stack.members]
        found = {}
        for name, part in zip(names, columns, strict=True):
            end = part.start + part.size
            whole = int(part.tensor.ty.shape.values[1]) == part.size
            cut = lambda p=part, e=end: relax.op.strided_slice(p.tensor, [1], [p.start], [e])
            y = part.tensor if whole else b.blocks.emit(cut())
            found[name] = b.blocks.emit(relax.op.reshape(y, (*outer, part.size)))
        return found


def _used(function: relax.Function) -> set[Expr]:
    """Return the variables that the body of a function reads."""
    found: set[Expr] = set()
    relax.analysis.post_order_visit(
        function.body, lambda e: found.add(e) if isinstance(e, relax.Var) else None
    )
    return found
