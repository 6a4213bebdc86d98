"""Open an ONNX file: whole, valid, with its external data, and with the outputs that are wanted."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from shiftadd_tvm.errors import BadFileError, UnsupportedError, UsageError

SUFFIX = ".onnx"


def read(path: Path, outputs: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the model at `path`; `outputs` names values that take the place of its outputs.

    Raises `BadFileError` for what is no valid ONNX file, `UsageError` for an unknown output.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(path)  # by its path: the limit of 2 GB is that of one message
        model = onnx.inliner.inline_local_functions(model)
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), "damaged")
        raise BadFileError(f"{path} is not a valid ONNX file ({reason}); export it again.") from None
    for value in [*model.graph.input, *model.graph.output]:
        if not value.type.HasField("tensor_type"):
            raise UnsupportedError(
                f"{path}: {value.name} is no tensor; only tensors can go in and out of an artifact."
            )
    return _cut(model, path, outputs) if outputs else model


def _cut(model: onnx.ModelProto, path: Path, outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the model with `outputs` as its outputs."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: value for value in [*inferred.value_info, *inferred.output]}
    made = {name for node in model.graph.node for name in node.output if name}
    for name in outputs:
        if name not in made:
            near = difflib.get_close_matches(name, made, 3, 0.3)
            hint = f"the nearest are {', '.join(near)}" if near else "look at it with a viewer"
            raise UsageError(f"--outputs names {name!r}, which {path} does not compute; {hint}.")
    del model.graph.output[:]
    model.graph.output.extend(known.get(n, onnx.ValueInfoProto(name=n)) for n in outputs)
    return model
