"""Compute in advance what an ONNX graph need not compute at run time.

Exporters write shapes as little graphs (Shape, Gather, Concat, ...), and weights behind Transpose or
Identity. Folding computes every node whose inputs are known, by onnx's own reference evaluator: from
constants, and from sizes that shape inference finds whatever the batch is. A Reshape of which one
size varies gets the -1 that says the same. What is left is what the later stages must understand.
"""

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = np.ndarray

MAX_ELEMENTS = 1 << 24  # of a folded tensor: beyond it the graph is smaller than its result
LARGE = 1024  # elements of an initializer that shape inference need not see
ROUNDS = 8  # of shape inference and folding; each may know sizes that the one before did not
RANDOM = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli", "Dropout")
GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
# Operators that move sizes without looking at them: what they do to two different stand-ins for an
# unknown size they do to any.
MOVING = ("Shape", "Gather", "Unsqueeze", "Squeeze", "Concat", "Cast", "Slice", "Identity")
STAND_INS = (7919, 104729)  # larger than any size that is likely to be known


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of the same inputs and outputs without nodes that are known in advance.

    Constants are initializers afterwards, and initializers that nothing reads are gone.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    for _ in range(ROUNDS):
        before = len(folded.graph.node)
        _Folding(folded).run()
        drop_unread(folded.graph)
        if len(folded.graph.node) == before:
            break
    return folded


def constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """Return the initializers by name; one that is also an input is a default, and no constant."""
    given = {value.name for value in graph.input}
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name not in given}


def shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Return the inferred shape of each value of known rank, None for a size that varies."""
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True)
    found: dict[str, list[int | None]] = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            sizes = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
            found[value.name] = sizes
    return found


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with large initializers as inputs: inference copies what it is given."""
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    given = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= LARGE:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    return light


class _Folding:
    """One round over the nodes of a model, in their order, which is topological."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._shapes = shapes(model)
        self._known = constants(model.graph)
        self._sizes: dict[str, tuple[Array, Array]] = {}  # partly known: with either stand-in
        self._made: dict[str, Array] = {}

    def run(self) -> None:
        """Fold what is known, and say -1 where a Reshape has one size that varies."""
        graph = self._model.graph
        wanted = {value.name for value in graph.output}
        kept = [node for node in graph.node if set(node.output) & wanted or not self._folds(node)]
        for node in kept:
            if node.op_type == "Reshape" and node.input[1] in self._sizes:
                self._reshape(node)
        del graph.node[:]
        graph.node.extend(kept)
        made = (numpy_helper.from_array(np.asarray(v), k) for k, v in self._made.items())
        graph.initializer.extend(made)

    def _folds(self, node: onnx.NodeProto) -> bool:
        """Tell whether all outputs of a node are known, and remember what is known of them."""
        if node.op_type == "Shape":
            results = self._shape(node)
        elif all(name in self._known for name in node.input if name):
            results = self._evaluated(node, self._known)
        else:
            results = self._moved(node)
        if results is None:
            return False
        self._known |= results
        self._made |= results
        return True

    def _shape(self, node: onnx.NodeProto) -> dict[str, Array] | None:
        if node.input[0] not in self._shapes:
            return None
        ends = {a.name: a.i for a in node.attribute}
        sizes = self._shapes[node.input[0]][ends.get("start") : ends.get("end")]
        pair = [np.array([s if s is not None else other for s in sizes]) for other in STAND_INS]
        return self._remember(node.output[0], pair[0].astype(np.int64), pair[1].astype(np.int64))

    def _moved(self, node: onnx.NodeProto) -> dict[str, Array] | None:
        """Carry partly known sizes through a node that only moves them."""
        names = [name for name in node.input if name]
        if node.op_type not in MOVING or not all(
            name in self._known or name in self._sizes for name in names
        ):
            return None
        pair: list[Array] = []
        for which in range(2):
            given = {name: self._sizes[name][which] for name in names if name in self._sizes}
            results = self._evaluated(node, {**self._known, **given})
            if results is None or len(results) != 1:
                return None
            pair += results.values()
        return self._remember(node.output[0], pair[0], pair[1])

    def _remember(self, name: str, one: Array, other: Array) -> dict[str, Array] | None:
        if np.array_equal(one, other):
            return {name: one}
        self._sizes[name] = one, other
        return None

    def _evaluated(
        self, node: onnx.NodeProto, values: dict[str, Array]
    ) -> dict[str, Array] | None:
        return evaluate(node, {n: values[n] for n in node.input if n}, self._model.opset_import)

    def _reshape(self, node: onnx.NodeProto) -> None:
        one, other = self._sizes[node.input[1]]
        varies = one != other
        if varies.sum() == 1 and (one[~varies] > 0).all():
            name = f"{node.output[0]}.shape"
            self._made[name] = np.where(varies, -1, one)
            node.input[1] = name


def evaluate(
    node: onnx.NodeProto, arguments: dict[str, Array], opsets: list[onnx.OperatorSetIdProto]
) -> dict[str, Array] | None:
    """Return what onnx's reference computes for one node; None where it cannot, must not (chance,
    subgraphs, operators of others), or it would be too much."""
    inner = any(a.type in GRAPHS for a in node.attribute)
    if node.op_type.startswith(RANDOM) or node.domain not in ("", "ai.onnx") or inner:
        return None
    types = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in arguments.items()}
    inputs = [helper.make_tensor_value_info(n, types[n], a.shape) for n, a in arguments.items()]
    names = [name for name in node.output if name]
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=n) for n in names])
    try:
        single = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets))
        results = single.run(None, arguments)
    except Exception:  # noqa: BLE001  onnx raises anything; the node stays as it is
        return None
    arrays = [np.asarray(r) for r in results if isinstance(r, np.ndarray | np.generic)]
    if len(arrays) != len(names) or any(a.size > MAX_ELEMENTS for a in arrays):
        return None
    return dict(zip(names, arrays, strict=True))


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that no output depends on."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= {name for name in node.input if name} | _read_inside(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    del graph.value_info[:]


def _read_inside(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node's subgraphs read or give back: more than is needed is harmless."""
    found: set[str] = set()
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            found |= {output.name for output in graph.output}
            for inner in graph.node:
                found |= {name for name in inner.input if name} | _read_inside(inner)
    return found
