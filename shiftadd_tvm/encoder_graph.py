"""Write an encoder as an ONNX graph without the weights of its linears, ready to be quantized.

So an encoder of a Hugging Face checkpoint goes the way of any ONNX graph from here on: the same packed
model, lowering, gate and runtime. Each linear of a block is `MatMul(x, "<linear>.weight")`, the weight
(K, N) an input of the graph, as `onnx_linears.py` leaves it. What embeds the input (patches, words,
positions), norms, biases and heads keep their float32 weights: they are a few per cent of the model, or
rows that are looked up, and read what no rotation has spread.
"""

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from shiftadd_tvm.decoder_model import Norms, Projection
from shiftadd_tvm.encoder_model import (
    STATES,
    Encoder,
    Head,
    Images,
    Normalized,
    Unembedded,
    Words,
)
from shiftadd_tvm.onnx_packed import WEIGHT

OPSET, IR_VERSION = 20, 9
BATCH, TOKENS = "batch", "tokens"  # names of the sizes that vary
HIDDEN_SCORE = -1e9  # what a masked key adds to a score: its exponential is 0

Array = np.ndarray
Read = Callable[[str], Array]


def write(encoder: Encoder, heads: tuple[Head, ...], read: Read) -> onnx.ModelProto:
    """Return the graph of `encoder` with the outputs of `heads` beside its hidden states; `read` gives a
    tensor of the checkpoint in float32."""
    return _Writer(encoder, read).model(heads)


class _Writer:
    """The nodes, tensors and inputs of a graph that is being written."""

    def __init__(self, encoder: Encoder, read: Read) -> None:
        self._encoder, self._read = encoder, read
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, Array] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._made: dict[str, str] = {}  # output of the model -> value

    def model(self, heads: tuple[Head, ...]) -> onnx.ModelProto:
        encoder = self._encoder
        embedded = encoder.embedded
        if isinstance(embedded, Images):
            x, mask = self._images(embedded), ""
        else:
            x, mask = self._words(embedded)
        for block in encoder.blocks():
            x = self._block(x, f"{block}.", mask)
        x = self._norm(x, encoder.final_norm) if encoder.final_norm else x
        self._made[STATES] = x
        for head in heads:
            self._made[head.output] = self._head(head)
        outputs = [self._output(name, value) for name, value in self._made.items()]
        for name, (n, k) in encoder.linear_shapes().items():
            self._input(name + WEIGHT, TensorProto.FLOAT, k, n)
        tensors = [numpy_helper.from_array(value, name) for name, value in self._tensors.items()]
        graph = helper.make_graph(self._nodes, "encoder", self._inputs, outputs, tensors)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        return onnx.shape_inference.infer_shapes(model)

    def _output(self, name: str, value: str) -> onnx.ValueInfoProto:
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    def _input(self, name: str, kind: int, *shape: int | str) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def _node(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind.lower()}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def _constant(self, value: object, dtype: type = np.int64) -> str:
        array: Array = np.array(value, dtype)
        name = f"constant.{array.dtype}.{array.tolist()}".replace(" ", "")
        self._tensors[name] = array
        return name

    def _tensor(self, name: str) -> str:
        if name not in self._tensors:
            self._tensors[name] = self._read(name)
        return name

    def _matrix(self, name: str) -> str:
        """Return a weight (N, K) of the checkpoint as the right side of a product, (K, N)."""
        turned = f"{name}.turned"
        if turned not in self._tensors:
            self._tensors[turned] = np.ascontiguousarray(self._read(name).T)
        return turned

    def _images(self, kind: Images) -> str:
        """Return x (batch, sequence, hidden) of images."""
        hidden = self._encoder.hidden
        sizes = (BATCH, kind.channels, kind.height, kind.width)
        pixels = self._input("pixel_values", TensorProto.FLOAT, *sizes)
        patch = [kind.patch_height, kind.patch_width]
        weights = (self._tensor(f"{kind.projection}.{part}") for part in ("weight", "bias"))
        x = self._node("Conv", pixels, *weights, kernel_shape=patch, strides=patch)
        count = math.prod(kind.patches)
        x = self._node("Reshape", x, self._constant([0, hidden, count]))
        x = self._node("Transpose", x, perm=[0, 2, 1])
        places = self._read(kind.positions)
        self._tensors["positions"] = np.ascontiguousarray(places[:, len(kind.tokens) :])
        x = self._node("Add", x, "positions")
        front = places[:, : len(kind.tokens)]
        front = front + np.concatenate([self._read(name) for name in kind.tokens], axis=1)
        if kind.registers:
            front = np.concatenate([front, self._read(kind.registers)], axis=1)
        self._tensors["tokens"] = front
        batch = self._node("Shape", pixels, start=0, end=1)
        sizes_of_front = self._node("Concat", batch, self._constant(list(front.shape[1:])), axis=0)
        return self._node("Concat", self._node("Expand", "tokens", sizes_of_front), x, axis=1)

    def _words(self, kind: Words) -> tuple[str, str]:
        """Return x (batch, tokens, hidden) of texts, and what scores add (batch, 1, 1, tokens)."""
        ids, mask, *types = [
            self._input(name, TensorProto.INT64, BATCH, TOKENS) for name in kind.names
        ]
        x = self._node("Gather", self._tensor(f"{kind.words}.weight"), ids, axis=0)
        if types:
            rows = self._node("Gather", self._tensor(f"{kind.types}.weight"), types[0], axis=0)
            x = self._node("Add", x, rows)
        positions = self._positions(kind, ids)
        rows = self._node("Gather", self._tensor(f"{kind.positions}.weight"), positions, axis=0)
        x = self._norm(self._node("Add", x, rows), kind.norm)
        shown = self._node("Cast", mask, to=TensorProto.FLOAT)
        hidden = self._node("Sub", self._constant(1.0, np.float32), shown)
        added = self._node("Mul", hidden, self._constant(HIDDEN_SCORE, np.float32))
        return x, self._node("Unsqueeze", added, self._constant([1, 2]))

    def _positions(self, kind: Words, ids: str) -> str:
        """Return the rows (batch, tokens) of the table of positions."""
        if kind.padding is None:
            every = self._node("Equal", ids, ids)
            ones = self._node("Cast", every, to=TensorProto.INT64)
            counted = self._node("CumSum", ones, self._constant(1))
            return self._node("Sub", counted, self._constant(1))
        padding = self._constant(kind.padding)
        padded = self._node("Equal", ids, padding)
        words = self._node("Cast", self._node("Not", padded), to=TensorProto.INT64)
        counted = self._node("CumSum", words, self._constant(1))
        return self._node("Add", self._node("Mul", counted, words), padding)

    def _block(self, x: str, path: str, mask: str) -> str:
        encoder = self._encoder
        attend = lambda v: self._attention(v, path, mask)
        x = self._half(x, path, encoder.attention_norms, encoder.attention_scale, attend)
        mlp = lambda v: self._mlp(v, path)
        return self._half(x, path, encoder.mlp_norms, encoder.mlp_scale, mlp)

    def _half(
        self, x: str, path: str, norms: Norms, scale: str, function: Callable[[str], str]
    ) -> str:
        y = function(self._norm(x, path + norms.before) if norms.before else x)
        if scale:
            y = self._node("Mul", y, self._tensor(path + scale))
        x = self._node("Add", x, y)
        return self._norm(x, path + norms.after) if norms.after else x

    def _attention(self, x: str, path: str, mask: str) -> str:
        encoder = self._encoder
        split = self._constant([0, 0, encoder.heads, encoder.head_dim])
        query, key, value = (
            self._node("Reshape", self._linear(x, path, linear), split)
            for linear in encoder.attention
        )
        query = self._node("Transpose", query, perm=[0, 2, 1, 3])
        key = self._node("Transpose", key, perm=[0, 2, 3, 1])
        value = self._node("Transpose", value, perm=[0, 2, 1, 3])
        scale = self._constant(encoder.head_dim**-0.5, np.float32)
        scores = self._node("Mul", self._node("MatMul", query, key), scale)
        if mask:
            scores = self._node("Add", scores, mask)
        mixed = self._node("MatMul", self._node("Softmax", scores, axis=-1), value)
        mixed = self._node("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = self._node("Reshape", mixed, self._constant([0, 0, encoder.hidden]))
        return self._linear(mixed, path, encoder.attention_output)

    def _mlp(self, x: str, path: str) -> str:
        encoder = self._encoder
        y = self._linear(x, path, encoder.mlp_input)
        if not encoder.gated:
            return self._linear(self._activated(y, encoder.activation), path, encoder.mlp_output)
        half = encoder.mlp_output.inputs
        gate, up = (self._columns(y, start, start + half) for start in (0, half))
        y = self._node("Mul", self._activated(gate, encoder.activation), up)
        return self._linear(y, path, encoder.mlp_output)

    def _columns(self, x: str, start: int, stop: int, axis: int = -1) -> str:
        ends = (self._constant([value]) for value in (start, stop, axis))
        return self._node("Slice", x, *ends)

    def _linear(self, x: str, path: str, linear: Projection) -> str:
        y = self._node("MatMul", x, f"{path}{linear.path}{WEIGHT}")
        if not linear.bias:
            return y
        return self._node("Add", y, self._tensor(f"{path}{linear.path}.bias"))

    def _norm(self, x: str, path: str) -> str:
        weight, bias = (self._tensor(f"{path}.{part}") for part in ("weight", "bias"))
        epsilon = self._encoder.epsilon
        return self._node("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)

    def _activated(self, x: str, function: str) -> str:
        if function == "silu":
            return self._node("Mul", x, self._node("Sigmoid", x))
        if function == "gelu_tanh":
            return self._node("Gelu", x, approximate="tanh")
        return self._node({"gelu": "Gelu", "relu": "Relu", "tanh": "Tanh"}[function], x)

    def _head(self, head: Head) -> str:
        if len(head.of) > 1:
            total = self._node("Sum", *(self._made[name] for name in head.of))
            return self._node("Mul", total, self._constant(1 / len(head.of), np.float32))
        x = self._made[head.of[0]]
        if head.of[0] == STATES and head.rows != "all":
            x = self._rows(x, head.rows)
        for step in head.steps:
            if isinstance(step, str):
                x = self._activated(x, step)
            elif isinstance(step, Normalized):
                x = self._norm(x, step.path)
            else:
                x = self._product(x, step)
        return x

    def _product(self, x: str, step: Projection | Unembedded) -> str:
        if isinstance(step, Projection):
            weight, bias = self._matrix(f"{step.path}.weight"), f"{step.path}.bias"
        else:
            assert isinstance(self._encoder.embedded, Words)
            weight, bias = self._matrix(f"{self._encoder.embedded.words}.weight"), step.bias
        return self._node("Add", self._node("MatMul", x, weight), self._tensor(bias))

    def _rows(self, x: str, rows: str) -> str:
        """Return what a head reads of x (batch, sequence, hidden): (batch, columns)."""
        at = {"first": 0, "second": 1, "first and mean": 0}[rows]
        one = self._node("Gather", x, self._constant(at), axis=1)
        if rows != "first and mean":
            return one
        assert isinstance(self._encoder.embedded, Images)
        patches = math.prod(self._encoder.embedded.patches)
        rest = self._columns(x, -patches, np.iinfo(np.int64).max, axis=1)
        mean = self._node("ReduceMean", rest, self._constant([1]), keepdims=0)
        return self._node("Concat", one, mean, axis=1)
