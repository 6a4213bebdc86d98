"""Run an ONNX graph on this machine, by ONNX Runtime where it is installed, else by onnx's reference.

What a packed model stands for is computed here, so that later stages need neither.
"""

import importlib.metadata
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from shiftadd_tvm.errors import BadFileError, GateError

Array = np.ndarray
Tensors = dict[str, Array]
Value = Any  # onnx.ValueInfoProto; onnx has no types that mypy could read

FIRST_SIZE, OTHER_SIZE = 2, 16  # of made-up inputs where a size varies: the batch, and any other
ROWS = 4  # of calibration inputs that run together where the batch varies


def name() -> str:
    """Return what runs graphs here, with its version."""
    package = "onnxruntime" if importlib.util.find_spec("onnxruntime") else "onnx"
    return f"{package} {importlib.metadata.version(package)}"


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Tensors:
    """Return the outputs of `model` by name; `GateError` where it cannot be run."""
    return Runner(model)(feeds)


class Runner:
    """A graph that is ready to run; `extra` names values that are given back beside its outputs."""

    def __init__(self, model: onnx.ModelProto, extra: Sequence[str] = ()) -> None:
        """Prepare the graph for one thread: the order of sums depends on how many there are."""
        wanted = onnx.ModelProto()
        wanted.CopyFrom(model)
        outputs = {value.name for value in model.graph.output}
        made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in extra]
        wanted.graph.output.extend(value for value in made if value.name not in outputs)
        self._names = [value.name for value in wanted.graph.output]
        try:
            self._session = _session(wanted)
        except Exception as error:  # noqa: BLE001  both libraries raise their own
            raise GateError(_failed(error)) from None

    def __call__(self, feeds: Mapping[str, Array]) -> Tensors:
        """Return the outputs for `feeds` by name."""
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as error:  # noqa: BLE001
            raise GateError(_failed(error)) from None
        return dict(zip(self._names, map(np.asarray, values), strict=True))


def _failed(error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return (
        f"The graph cannot be run by {name()} ({reason}), so there is nothing to check an artifact "
        "by; check the inputs of --calib, or export the model again."
    )


def _session(model: onnx.ModelProto) -> Any:
    if not importlib.util.find_spec("onnxruntime"):
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # it raises what it logs
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """Return the shape of an input, None for a size that varies."""
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") and d.dim_value else None for d in dims]


def made_up(model: onnx.ModelProto, values: Sequence[Value], seed: int) -> Tensors:
    """Return random arrays for the inputs `values` of `model`: floats of a normal distribution,
    indices that the tables they look up have, ones for other whole numbers and masks."""
    rng = np.random.Generator(np.random.PCG64(seed))
    tables = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    limits = {
        node.input[1]: tables[node.input[0]][_axis(node)]
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[0] in tables
    }
    found: Tensors = {}
    for value in values:
        known = enumerate(sizes(value))
        shape = [size or (OTHER_SIZE if place else FIRST_SIZE) for place, size in known]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if np.issubdtype(dtype, np.floating):
            found[value.name] = rng.standard_normal(shape).astype(dtype)
        elif value.name in limits:
            found[value.name] = rng.integers(0, limits[value.name], shape).astype(dtype)
        else:
            found[value.name] = np.ones(shape, dtype)
    return found


def _axis(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)


def check_inputs(values: Sequence[Value], given: Mapping[str, Array], path: object) -> None:
    """Raise `BadFileError` unless `given`, read from `path`, are inputs of a model: one array each,
    whose first axis may hold several times what one call takes."""
    expected = {value.name: value for value in values}
    if set(given) != set(expected):
        raise BadFileError(
            f"{path} holds {', '.join(sorted(given)) or 'nothing'}, expected one array for each input "
            f"of the model: {', '.join(expected)}."
        )
    for name_, value in expected.items():
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape, array = sizes(value), given[name_]
        fits = array.ndim == len(shape) and all(
            size is None or found == size or (place == 0 and found and found % size == 0)
            for place, (found, size) in enumerate(zip(array.shape, shape, strict=False))
        )
        if array.dtype != dtype or not fits or not array.size:
            wanted = [size or "any" for size in shape]
            raise BadFileError(
                f"{path}: {name_} is {array.dtype} {list(array.shape)}, expected {dtype} {wanted}, "
                "the first axis as long as there are examples."
            )


def calls(values: Sequence[Value], given: Mapping[str, Array]) -> Iterator[Tensors]:
    """Yield the examples of `given` as inputs of one call each."""
    shapes = {value.name: sizes(value) for value in values}
    steps = {n: (s[0] or ROWS) if s else 1 for n, s in shapes.items()}
    count = max((math.ceil(len(given[n]) / steps[n]) for n, s in shapes.items() if s), default=1)
    for index in range(count):
        yield {
            n: given[n][index * steps[n] :][: steps[n]] if s else given[n] for n, s in shapes.items()
        }
