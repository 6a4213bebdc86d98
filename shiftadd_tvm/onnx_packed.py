"""Contract 1 of kind `onnx`: a packed model whose linears belong to an ONNX graph.

    config.json                       model_type "onnx", or an encoder's own keys (encoder_plan.py), and
                                      quantization_config (packed_config.py), with
                                      linear_shapes   {linear: [outputs, inputs]}, in graph order
                                      graph_sha256    of model.onnx
                                      golden          what computed the golden outputs
                                      limits          {name of a size that varies: at most}, optional
    model.onnx                        the graph; the weight (K, N) of each linear is an input that is
                                      called `<linear>.weight`
    model-00001-of-00001.safetensors  planes and scales, and the index beside it, as for kind `hf`
    golden.safetensors                input.<name>, output.<name>: what the graph computes with the
                                      dequantized weights, for later stages to check themselves

Reading the graph needs the package onnx, and neither torch nor TVM.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shiftadd_tvm.coded_tensors import CodedTensors, open_shards
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.files import sha256
from shiftadd_tvm.packed import CONFIG, GOLDEN
from shiftadd_tvm.packed_config import Fields, read_coding, read_fields, read_json, shared_groups
from shiftadd_tvm.packed_layout import CodedLayout, Shape
from shiftadd_tvm.tensorfile import TensorFile

if TYPE_CHECKING:
    import onnx

KIND = "onnx"
GRAPH = "model.onnx"
WEIGHT = ".weight"  # what follows a linear's name as an input of the graph

Array = np.ndarray
Tensors = dict[str, Array]


@dataclass(frozen=True)
class GraphLayout(CodedLayout):
    """How the linears of a graph are coded."""

    shapes: dict[str, Shape]  # (outputs, inputs) of each linear
    members: tuple[tuple[str, ...], ...]  # of each group that reads one activation

    def linears(self) -> dict[str, Shape]:
        """Return (outputs, inputs) of every quantized linear, in graph order."""
        return self.shapes

    def groups(self) -> list[tuple[str, ...]]:
        """Return the linears that share an input, the leader first."""
        return list(self.members)


class PackedGraph(CodedTensors):
    """A validated packed model of kind `onnx`; its tensors stay mapped until they are used."""

    config: dict[str, object]
    quantization: dict[str, object]
    layout: GraphLayout
    limits: dict[str, int]  # of sizes that vary, by their names

    def __init__(self, path: Path, *, golden: bool = True) -> None:
        """Open and validate the folder `path`; `golden=False` while it is not written yet."""
        self.path = path
        self.config = read_json(path / CONFIG)
        fields = read_fields(path / CONFIG, self.config, KIND)
        self.quantization, self.layout = fields.values, _read_layout(fields)
        self.limits = _read_limits(fields)
        self._files = open_shards(path)
        self._groups = {name: group for group in self.layout.groups() for name in group}
        self._check_coded({})
        if not (path / GRAPH).is_file():
            raise self._bad(f"{GRAPH} is missing")
        if sha256(path / GRAPH) != self.quantization.get("graph_sha256"):
            raise self._bad(f"{GRAPH} is not the one that its config.json describes")
        self._golden = read_golden(path / GOLDEN) if golden else None

    def names(self) -> list[str]:
        """Return nothing: what is not coded stands in the graph."""
        return []

    def graph(self) -> "onnx.ModelProto":
        """Return the graph."""
        import onnx  # heavy

        model = onnx.load(self.path / GRAPH)
        inputs = {value.name for value in model.graph.input}
        missing = [name for name in self.linears() if name + WEIGHT not in inputs]
        if missing:
            raise self._bad(f"{GRAPH} has no input {missing[0]}{WEIGHT}")
        return model

    def golden(self) -> tuple[Tensors, Tensors]:
        """Return the golden inputs and outputs by name."""
        assert self._golden is not None, "opened without its golden file"
        return self._golden


def _read_layout(fields: Fields) -> GraphLayout:
    stored = fields.object("linear_shapes")
    shapes: dict[str, Shape] = {}
    for name, sizes in stored.items():
        pair = sizes if isinstance(sizes, list) else []
        good = len(pair) == 2 and all(type(s) is int and 0 < s < 1 << 31 for s in pair)
        fields.require("linear_shapes", good, "outputs and inputs of each linear")
        shapes[name] = tuple(pair)
    fields.require("linear_shapes", bool(shapes), "at least one linear")
    coding = read_coding(fields, list(shapes), "the linears of linear_shapes")
    layout = GraphLayout(**coding, shapes=shapes, members=_read_groups(fields, shapes))
    fields.require("bits", fields.get("bits") == layout.nominal_bits(), "bits_per_module's average")
    return layout


def _read_limits(fields: Fields) -> dict[str, int]:
    if fields.get("limits") is None:
        return {}
    stored = fields.object("limits")
    good = all(type(limit) is int and 0 < limit < 1 << 31 for limit in stored.values())
    fields.require("limits", good, "positive whole numbers")
    return {name: int(str(limit)) for name, limit in stored.items()}


def _read_groups(fields: Fields, shapes: Mapping[str, Shape]) -> tuple[tuple[str, ...], ...]:
    """Return the groups, those of one linear too, in the order of their leaders."""
    key, stored = "shared_input_groups", fields.get("shared_input_groups")
    listed = isinstance(stored, list) and all(
        isinstance(g, list) and len(g) > 1 and all(name in shapes for name in g) for g in stored
    )
    fields.require(key, listed, "lists of linears")
    assert isinstance(stored, list)
    members = [name for group in stored for name in group]
    inputs = all(len({shapes[name][1] for name in group}) == 1 for group in stored)
    fields.require(key, inputs and len(set(members)) == len(members), "linears of equal inputs")
    groups = [tuple(group) for group in stored]
    groups += [(name,) for name in shapes if name not in members]
    order = {name: place for place, name in enumerate(shapes)}
    return tuple(sorted(groups, key=lambda group: order[group[0]]))


def graph_config(layout: GraphLayout) -> dict[str, object]:
    """Return the part of a quantization_config by which `_read_layout` finds `layout`."""
    return {
        "kind": KIND,
        "linear_shapes": {name: list(shape) for name, shape in layout.shapes.items()},
        "shared_input_groups": shared_groups(layout),
    }


def read_golden(path: Path) -> tuple[Tensors, Tensors]:
    """Return the inputs and outputs of a golden file by name; `BadFileError` where it has none."""
    file = TensorFile(path)
    found: dict[str, Tensors] = {"input": {}, "output": {}}
    for stored in file.names():
        side, _, name = stored.partition(".")
        if side not in found or not name:
            raise BadFileError(f"{path} holds {stored!r}, expected input.<name> and output.<name>.")
        found[side][name] = file.raw(stored)
    if not found["output"]:
        raise BadFileError(f"{path} holds no output.<name>; expected the golden file of a graph.")
    return found["input"], found["output"]

