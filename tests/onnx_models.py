"""Small ONNX models for the tests, written as exporters write them."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
DIM, HEADS, PATCHES, CLASSES = 32, 2, 4, 12

Array = np.ndarray


class Graph:
    """Nodes, constants and inputs of a model that is being written."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, value: object, dtype: type = np.int64) -> str:
        name = f"constant_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        values = self._rng.standard_normal(shape) * scale / np.sqrt(max(shape[-1], 1))
        return self.constant(values, np.float32)

    def model(self, inputs: list, outputs: list) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "small", inputs, outputs, self.tensors)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def value(name: str, *shape: object, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def vision_model() -> onnx.ModelProto:
    """Return a transformer of one block over patches of images (batch, 3, 8, 8), as PyTorch exports
    it: sizes computed by Shape and Gather, a weight behind Transpose; then 1x1 convolutions, one of
    every second pixel, and a Gemm."""
    g = Graph()
    patches = g.node("Conv", "image", g.weight(DIM, 3, 4, 4), kernel_shape=[4, 4], strides=[4, 4])
    batch = g.node("Gather", g.node("Shape", "image"), g.constant(0), axis=0)
    one = g.constant([0])
    sizes = lambda *rest: g.node(
        "Concat", g.node("Unsqueeze", batch, one), *(g.constant([r]) for r in rest), axis=0
    )
    x = g.node("Transpose", g.node("Reshape", patches, sizes(DIM, PATCHES)), perm=[0, 2, 1])
    y = g.node("LayerNormalization", x, g.weight(DIM), g.weight(DIM), axis=-1)
    heads = []
    for part in ("query", "key", "value"):
        w = g.node("Transpose", g.weight(DIM, DIM, scale=2), perm=[1, 0])
        z = g.node("Add", g.node("MatMul", y, w, name=f"/attention/{part}/MatMul"), g.weight(DIM))
        z = g.node("Reshape", z, sizes(PATCHES, HEADS, DIM // HEADS))
        heads.append(g.node("Transpose", z, perm=[0, 2, 3, 1] if part == "key" else [0, 2, 1, 3]))
    weights = g.node("Softmax", g.node("MatMul", heads[0], heads[1]), axis=-1)
    mixed = g.node("Transpose", g.node("MatMul", weights, heads[2]), perm=[0, 2, 1, 3])
    mixed = g.node("Reshape", mixed, sizes(PATCHES, DIM))
    x = g.node("Add", x, g.node("MatMul", mixed, g.weight(DIM, DIM), name="/attention/output/MatMul"))
    square = g.node("Reshape", g.node("Transpose", x, perm=[0, 2, 1]), sizes(DIM, 2, 2))
    wide = g.node("Conv", square, g.weight(48, DIM, 1, 1), g.weight(48), name="/wide/Conv")
    strided = g.node("Conv", square, g.weight(DIM, DIM, 1, 1), strides=[2, 2], name="/strided/Conv")
    pooled = g.node("GlobalAveragePool", g.node("Relu", wide))
    flat = g.node("Concat", g.node("Flatten", pooled), g.node("Flatten", strided), axis=1)
    features = g.node("Identity", flat)
    head = g.weight(CLASSES, 48 + DIM)
    scores = g.node("Gemm", features, head, g.weight(CLASSES), transB=1, alpha=0.5, beta=2.0)
    g.nodes[-1].name = "/head/Gemm"
    g.nodes[-1].output[0] = scores = "scores"
    g.nodes.append(helper.make_node("ArgMax", [scores], ["label"], axis=1, keepdims=0))
    outputs = [value("scores", "batch", CLASSES), value("label", "batch", dtype=TensorProto.INT64)]
    return g.model([value("image", "batch", 3, 8, 8)], outputs)


def text_model() -> onnx.ModelProto:
    """Return token ids (1, 3) and a mask to pooled states: fixed sizes, few rows, a table."""
    g = Graph(1)
    x = g.node("Gather", g.weight(50, 24), "ids", axis=0)
    mask = g.node("Unsqueeze", g.node("Cast", "mask", to=TensorProto.FLOAT), g.constant([2]))
    x = g.node("Mul", x, mask)
    x = g.node("Tanh", g.node("MatMul", x, g.weight(24, 40), name="up"))
    g.nodes.append(helper.make_node("ReduceMean", [x], ["pooled"], axes=[1], keepdims=0))
    ids = value("ids", 1, 3, dtype=TensorProto.INT64)
    return g.model([ids, value("mask", 1, 3, dtype=TensorProto.BOOL)], [value("pooled", 1, 40)])


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def images(count: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)
