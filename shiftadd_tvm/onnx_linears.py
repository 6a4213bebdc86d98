"""Find the linears of an ONNX graph, and write the graph without their weights.

A linear is a product of an activation by a constant float32 matrix: MatMul, Gemm, and Conv with a
kernel of one pixel. Each becomes `MatMul(x, "<linear>.weight")`, the weight (K, N) an input of the
graph, with what else the node did (bias, factors, the channels' place) as nodes of their own. So the
graph stays valid ONNX: fed with dequantized weights, any ONNX runtime computes what a packed model
stands for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from shiftadd_tvm.onnx_folding import constants, drop_unread, shapes
from shiftadd_tvm.onnx_packed import WEIGHT

Array = np.ndarray


SMALLEST = 4  # inputs or outputs of a linear: below it scales would be most of its bytes
SUFFIXES = ("/MatMul", "/Gemm", "/Conv")  # of node names that PyTorch's exporter makes
INT64_MAX = np.iinfo(np.int64).max


@dataclass
class Prepared:
    """A graph without the weights of its linears; groups are of linears that read one activation."""

    model: onnx.ModelProto
    weights: Mapping[str, Array]  # float32 (N, K), in graph order
    groups: list[tuple[str, ...]] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)  # constant products that are no linears

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Return the inputs that a caller gives: neither defaults nor a linear's weight."""
        graph = self.model.graph
        made = {tensor.name for tensor in graph.initializer}
        made |= {name + WEIGHT for name in self.weights}
        return [value for value in graph.input if value.name not in made]


def separate(model: onnx.ModelProto) -> Prepared:
    """Return the folded `model` with its linears' weights taken out of the graph."""
    separated = onnx.ModelProto()
    separated.CopyFrom(model)
    work = _Separation(separated)
    for node in model.graph.node:
        work.add(node)
    return work.finish()


class _Separation:
    """The new nodes of a graph, and the linears found so far."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._constants = constants(model.graph)
        self._shapes = shapes(model)
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, Array] = {}
        self._moved: dict[tuple[str, ...], str] = {}  # channels-last forms of activations
        self._linears: dict[tuple[str, str], str] = {}  # (weight, form) -> name
        self._readers: dict[str, list[str]] = {}  # activation -> linears
        self._weights: dict[str, Array] = {}
        self._prepared = Prepared(model, self._weights)
        self._taken = _names(model.graph)

    def add(self, node: onnx.NodeProto) -> None:
        """Append what becomes of a node."""
        handlers = {"MatMul": self._matmul, "Gemm": self._gemm, "Conv": self._conv}
        handler = handlers.get(node.op_type)
        if handler is None or not handler(node):
            if handler and len(node.input) > 1 and node.input[1] in self._constants:
                self._prepared.dense.append(_label(node))
            self._nodes.append(node)

    def finish(self) -> Prepared:
        """Write nodes, inputs and groups back."""
        graph, prepared = self._model.graph, self._prepared
        del graph.node[:]
        graph.node.extend(self._nodes)
        made = (numpy_helper.from_array(value, name) for name, value in self._made.items())
        graph.initializer.extend(made)
        drop_unread(graph)
        for name, weight in prepared.weights.items():
            sizes = weight.shape[::-1]
            info = helper.make_tensor_value_info(name + WEIGHT, TensorProto.FLOAT, sizes)
            graph.input.append(info)
        prepared.groups = self._groups()
        return prepared

    def _groups(self) -> list[tuple[str, ...]]:
        """Return linears that read one activation; one that reads several is a group of its own."""
        read = [name for names in self._readers.values() for name in names]
        several = {name for name in read if read.count(name) > 1}
        groups = [tuple(n for n in names if n not in several) for names in self._readers.values()]
        return [g for g in groups if g] + [(name,) for name in dict.fromkeys(read) if name in several]

    def _matrix(self, name: str) -> Array | None:
        """Return a constant float32 matrix that is large enough to be a linear's weight."""
        value = self._constants.get(name)
        if value is None or value.dtype != np.float32 or value.ndim < 2:
            return None
        shape = [size for size in value.shape if size != 1] if value.ndim > 2 else value.shape
        return value if len(shape) == 2 and min(shape) >= SMALLEST else None

    def _product(self, node: onnx.NodeProto, x: str, weight: Array, form: str, y: str) -> None:
        """Append y = x @ W for W (N, K), `form` saying how it was made from the node's constant."""
        key = node.input[1], form
        if key not in self._linears:
            name = _label(node)
            while name in self._weights or name + WEIGHT in self._taken:
                name += "_"
            self._linears[key] = name
            self._weights[name] = np.ascontiguousarray(weight)
        name = self._linears[key]
        readers = self._readers.setdefault(x, [])
        readers += [] if name in readers else [name]
        self._node("MatMul", [x, name + WEIGHT], y)

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _constant(self, name: str, value: Array) -> str:
        self._made[name] = value
        return name

    def _matmul(self, node: onnx.NodeProto) -> bool:
        weight = self._matrix(node.input[1])
        if weight is None or weight.ndim != 2 or len(self._shapes.get(node.input[0], [])) < 2:
            return False
        self._product(node, node.input[0], weight.T, "matmul", node.output[0])
        return True

    def _gemm(self, node: onnx.NodeProto) -> bool:
        weight = self._matrix(node.input[1])
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if weight is None or given.get("transA"):
            return False
        alpha, beta = np.float32(given.get("alpha", 1)), np.float32(given.get("beta", 1))
        matrix = (weight if given.get("transB") else weight.T) * alpha
        output = node.output[0]
        added = len(node.input) > 2 and node.input[2] and beta != 0
        y = f"{output}.product" if added else output
        self._product(node, node.input[0], matrix, f"gemm {sorted(given.items())}", y)
        if added:
            bias = node.input[2]
            if beta != 1:
                factor = self._constant(f"{output}.beta", np.asarray(beta))
                bias = self._node("Mul", [bias, factor], f"{output}.scaled")
            self._node("Add", [y, bias], output)
        return True

    def _conv(self, node: onnx.NodeProto) -> bool:
        weight = self._matrix(node.input[1])
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        pointwise = weight is not None and weight.ndim > 2 and set(weight.shape[2:]) == {1}
        padded = any(given.get("pads", [])) or given.get("auto_pad", b"NOTSET") != b"NOTSET"
        if weight is None or not pointwise or padded or given.get("group", 1) != 1:
            return False
        rank, output = weight.ndim, node.output[0]
        x = self._channels_last(node.input[0], rank, tuple(given.get("strides", ())))
        y = f"{output}.product"
        self._product(node, x, weight.reshape(weight.shape[:2]), "conv", y)
        if len(node.input) > 2 and node.input[2]:
            y = self._node("Add", [y, node.input[2]], f"{output}.biased")
        self._node("Transpose", [y], output, perm=[0, rank - 1, *range(1, rank - 1)])
        return True

    def _channels_last(self, x: str, rank: int, strides: tuple[int, ...]) -> str:
        """Return x (B, K, ...) as (B, ..., K), every so many pixels of it."""
        strides = strides if any(stride != 1 for stride in strides) else ()
        key = (x, *map(str, strides))
        if key not in self._moved:
            base = ".".join((*key, "channels_last"))
            if strides:
                spatial = len(strides)
                ends = {
                    "starts": np.zeros(spatial, np.int64),
                    "ends": np.full(spatial, INT64_MAX),
                    "axes": np.arange(2, rank, dtype=np.int64),
                    "steps": np.array(strides, np.int64),
                }
                names = [self._constant(f"{base}.{n}", v) for n, v in ends.items()]
                x = self._node("Slice", [x, *names], f"{base}.strided")
            perm = [0, *range(2, rank), 1]
            self._moved[key] = self._node("Transpose", [x], base, perm=perm)
        return self._moved[key]


def _names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values of a graph."""
    found = {name for node in graph.node for name in [*node.input, *node.output]}
    return found | {value.name for value in [*graph.input, *graph.initializer]}


def _label(node: onnx.NodeProto) -> str:
    """Return a name for what a node multiplies by, such as encoder.layer.0.attention.key."""
    name = node.name or node.output[0]
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name.strip("/").replace("/", ".") or node.output[0]
