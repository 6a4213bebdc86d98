"""ONNX Runtime's MatMulNBits as a peer of one linear: 4 bits, blocks of 32, 8-bit activations.

All copies of the weight stand in one graph, so that they are cold and one run's cost is spread.
"""

import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from shiftadd_tvm.benchmark.turns import ContenderError, Fields, serve

BLOCK = 32
ACCURACY = 4  # activations are rounded to int8, the fastest level
OPSET = 21


def make_model(outputs: int, inputs: int, count: int) -> onnx.ModelProto:
    """Return a graph of `count` MatMulNBits of x (1, inputs), each with its own weights."""
    rng = np.random.default_rng(0)
    blocks = inputs // BLOCK
    attributes = {"K": inputs, "N": outputs, "bits": 4, "block_size": BLOCK}
    nodes, weights, results = [], [], []
    for index in range(count):
        levels = rng.integers(0, 256, (outputs, blocks, BLOCK // 2), np.uint8)
        scales = rng.random(outputs * blocks, np.float32)
        weights.append(numpy_helper.from_array(levels, f"b{index}"))
        weights.append(numpy_helper.from_array(scales, f"s{index}"))
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                ["x", f"b{index}", f"s{index}"],
                [f"y{index}"],
                domain="com.microsoft",
                accuracy_level=ACCURACY,
                **attributes,
            )
        )
        results.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, [1, outputs]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs])
    graph = helper.make_graph(nodes, "linears", [x], results, weights)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def prepare(request: Fields) -> tuple[Fields, dict[str, Any]]:
    """Return info and the action `call`, which gives the seconds of one linear."""
    outputs, inputs = request["shape"]
    if inputs % BLOCK:
        raise ContenderError(f"its blocks of {BLOCK} do not divide {inputs} inputs")
    nbytes = outputs * inputs // 2 + outputs * inputs // BLOCK * 4
    count = -(-request["cold_bytes"] // nbytes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    model = make_model(outputs, inputs, count).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((1, inputs), np.float32)

    def call() -> float:
        begin = time.perf_counter()
        session.run(None, {"x": x})
        return (time.perf_counter() - begin) / count

    return {"weight_bytes": nbytes, "version": onnxruntime.__version__}, {"call": call}


if __name__ == "__main__":
    serve(prepare)
