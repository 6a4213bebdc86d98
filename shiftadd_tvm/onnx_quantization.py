"""The verb `quantize` for a graph: plan, then code every linear and write a packed model.

The graph is that of an ONNX file, or what `encoder_graph.py` makes of an encoder's checkpoint.

Data-free, or with examples of the inputs: then the graph runs on them, and the second moments of each
linear's activation say which errors count (`quantizers/shiftadd.py`). A graph is no bigger than memory,
so nothing is resumed.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from shiftadd_tvm import (
    cpu,
    npz,
    onnx_folding,
    onnx_linears,
    onnx_runner,
    packed_writer,
    quantization_report,
)
from shiftadd_tvm.bcq import BCQWeight, dequantize
from shiftadd_tvm.errors import BadFileError, UnsupportedError, UsageError
from shiftadd_tvm.files import sha256, staged
from shiftadd_tvm.onnx_packed import GRAPH, WEIGHT, GraphLayout, PackedGraph, graph_config
from shiftadd_tvm.packed import GOLDEN, kind
from shiftadd_tvm.packed_config import coding_config, make_coding
from shiftadd_tvm.packed_layout import Shape
from shiftadd_tvm.quantization import MAX_MAGNITUDE, LayerReport, QuantizeReport
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.stage_progress import Progress
from shiftadd_tvm.tensorfile import DTYPES

Array = np.ndarray
Tensors = dict[str, Array]

SAFETENSORS = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
MOST_BYTES = 2**31 - 1  # of a message of the ONNX format
MODEL_TYPE = "onnx"


@dataclass(frozen=True)
class Source:
    """Where a graph comes from, and what a packed model keeps of it."""

    path: Path
    source_hash: str
    nbytes: int  # of its files
    stored_as: str = "ONNX, float32"
    config: Mapping[str, object] = field(default_factory=lambda: {"model_type": MODEL_TYPE})
    files: Mapping[str, bytes] = field(default_factory=dict)  # to be copied verbatim
    limits: Mapping[str, int] = field(default_factory=dict)  # of sizes that vary
    inputs: Tensors | None = None  # of the golden outputs where nobody gives examples


@dataclass(frozen=True)
class GraphPlan:
    """What `quantize` would do with a graph."""

    source: Source
    prepared: onnx_linears.Prepared
    layout: GraphLayout
    settings: QuantizeSettings
    examples: Tensors | None  # of the inputs, read from `settings.calibration_text`

    @property
    def path(self) -> Path:
        """The file or folder that the graph comes from."""
        return self.source.path

    @property
    def config(self) -> dict[str, object]:
        """Return the config.json of the packed model, without its quantization_config."""
        return dict(self.source.config)

    @property
    def fields(self) -> dict[str, object]:
        """Return the estimate under the field names of the command line's JSON."""
        layout, bits = self.layout, self.layout.bits
        shapes = layout.linears().items()
        graph_bytes = self.prepared.model.ByteSize()
        return {
            "model_type": self.config["model_type"],
            "stored_as": self.source.stored_as,
            "examples": count(self.examples),
            "layers": [{"name": n, "bits": bits[n], "shape": list(s)} for n, s in shapes],
            "not_converted": self.prepared.dense,
            "nominal_bits": layout.nominal_bits(),
            "effective_bits": layout.effective_bits(),
            "linear_bytes": layout.linear_bytes(),
            "estimated_bytes": layout.linear_bytes() + graph_bytes,
        }


def plan(
    source: Path, model: onnx.ModelProto, settings: QuantizeSettings, outputs: Sequence[str] = ()
) -> GraphPlan:
    """Fold and check `model`, read from the ONNX file `source`; nothing is written.

    Raises `UnsupportedError` for a graph without linears, `BadFileError` for weights that no scale can
    hold or examples that do not fit.
    """
    prepared = onnx_linears.separate(onnx_folding.fold(model))
    if not prepared.weights:
        raise UnsupportedError(
            f"{source} has no linear to quantize: no MatMul, Gemm or 1x1 Conv with a constant float32 "
            "weight; export it with float32 weights."
        )
    digest = hashlib.sha256(sha256(source).encode() + repr(tuple(outputs)).encode()).hexdigest()
    return plan_prepared(Source(source, digest, source.stat().st_size), prepared, settings)


def plan_prepared(
    source: Source, prepared: onnx_linears.Prepared, settings: QuantizeSettings
) -> GraphPlan:
    """Check a graph whose linears are known; raises as `plan` does."""
    if settings.bits % 1:
        raise UsageError(
            f"--bits is {settings.bits:g}, expected 1, 2, 3 or 4: the bits of a graph's linears are "
            "not chosen one by one."
        )
    if prepared.model.ByteSize() > MOST_BYTES:
        raise UnsupportedError(
            f"{source.path} has {prepared.model.ByteSize() / 1e9:.1f} GB beside its linears, expected "
            "less than 2 GB; split the model."
        )
    shapes: dict[str, Shape] = {}
    for name, weight in prepared.weights.items():
        shapes[name] = tuple(weight.shape)
        if not np.abs(weight).max() <= MAX_MAGNITUDE:  # a NaN is not
            raise BadFileError(
                f"{source.path}: the weight of {name} holds NaN, Inf or values beyond "
                f"{MAX_MAGNITUDE:.3g}; export it again."
            )
    coding = make_coding(settings, list(shapes))
    layout = GraphLayout(**coding, shapes=shapes, members=tuple(prepared.groups))
    return GraphPlan(source, prepared, layout, settings, _read_examples(prepared, settings))


def _read_examples(prepared: onnx_linears.Prepared, settings: QuantizeSettings) -> Tensors | None:
    """Return the examples of a `--calib` file, whose arrays are called as the inputs."""
    if settings.calibration_text is None:
        return None
    path = Path(settings.calibration_text)
    examples = npz.read(path)
    onnx_runner.check_inputs(prepared.inputs(), examples, path)
    return examples


def quantize(
    plan: GraphPlan, output: Path, *, force: bool = False, progress: Progress | None = None
) -> QuantizeReport:
    """Carry out a plan: write the packed model `output`, whole or not at all."""
    begin = time.perf_counter()
    with staged(output, GOLDEN, force=force) as folder:
        layers = _Coding(plan, folder, progress or _silent).run()
        _write_golden(PackedGraph(folder, golden=False), plan)
        PackedGraph(folder)
    layout = plan.layout
    return QuantizeReport(
        effective_bits=layout.effective_bits(),
        nominal_bits=layout.nominal_bits(),
        linear_bytes=layout.linear_bytes(),
        layers=layers,
        seconds=time.perf_counter() - begin,
        peak_memory_bytes=cpu.peak_memory(),
        untouched=[],
    )


def _silent(done: int, total: int, what: str) -> None:
    """Report no progress."""


class _Coding:
    """One run of `quantize` into its staging folder."""

    def __init__(self, plan: GraphPlan, folder: Path, progress: Progress) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress
        self._total = plan.layout.linear_weights()

    def run(self) -> list[LayerReport]:
        """Write everything but the golden file; return the errors of all linears."""
        plan, reports = self._plan, {}
        moments = self._moments()
        tensors: packed_writer.Tensors = {}
        done = 0
        for group in plan.layout.groups():
            self._progress(done, self._total, group[0])
            weights, errors = self._code(group, moments)
            tensors |= packed_writer.group_tensors(group, weights)
            for name, weight, error in zip(group, weights, errors, strict=True):
                reports[name] = self._report(name, weight, error)
                done += weight.shape[0] * weight.shape[1]
        self._progress(done, self._total, "golden outputs")
        shard = packed_writer.shard_name(0, 1)
        packed_writer.write_shard(self._folder / shard, tensors)
        packed_writer.write_index(self._folder, [shard])
        graph = self._folder / GRAPH
        graph.write_bytes(plan.prepared.model.SerializeToString(deterministic=True))
        self._write_config(sha256(graph))
        layers = [reports[name] for name in plan.layout.linears()]
        quantization_report.write(self._folder, (vars(layer) for layer in layers), {})
        return layers

    def _moments(self) -> dict[str, Array]:
        """Return the mean of x x' float32 (K, K) of each group's activation, by its leader."""
        plan = self._plan
        if plan.examples is None:
            return {}
        reads = _activations(plan.prepared.model)
        leaders = {group[0]: reads[group[0]] for group in plan.layout.groups()}
        weights = {n + WEIGHT: np.ascontiguousarray(w.T) for n, w in plan.prepared.weights.items()}
        runner = onnx_runner.Runner(plan.prepared.model, sorted(set(leaders.values())))
        sums: dict[str, Array] = {}
        counts = dict.fromkeys(leaders, 0)
        for inputs in onnx_runner.calls(plan.prepared.inputs(), plan.examples):
            self._progress(0, self._total, "calibrating")
            values = runner({**inputs, **weights})
            for leader, name in leaders.items():
                rows = values[name].reshape(-1, values[name].shape[-1])
                sums[leader] = sums.get(leader, 0) + rows.T @ rows
                counts[leader] += len(rows)
        return {leader: total / np.float32(counts[leader]) for leader, total in sums.items()}

    def _code(
        self, group: tuple[str, ...], moments: dict[str, Array]
    ) -> tuple[list[BCQWeight], list[float | None]]:
        plan = self._plan
        matrices = [plan.prepared.weights[name].copy() for name in group]
        bits = [plan.layout.bits[name] for name in group]
        if not moments:
            from shiftadd_tvm.quantizers import alternating

            return alternating.quantize(matrices, bits, plan.settings), [None] * len(group)
        import torch

        from shiftadd_tvm.quantizers import shiftadd

        hessian = torch.from_numpy(moments[group[0]])
        rounds = plan.settings.amounts.rounds
        coded = shiftadd.quantize(matrices, bits, hessian, plan.settings, rounds=rounds)
        return [one.weight for one in coded], [one.output_error for one in coded]

    def _report(self, name: str, weight: BCQWeight, output_error: float | None) -> LayerReport:
        true = self._plan.prepared.weights[name]
        square = float(np.square(true, dtype=np.float64).sum())
        error = float(np.square(true - dequantize(weight), dtype=np.float64).sum())
        return LayerReport(name, weight.bits, error / square if square else 0.0, output_error)

    def _write_config(self, graph_sha256: str) -> None:
        plan, settings = self._plan, self._plan.settings
        quantization = {
            **coding_config(plan.layout, settings),
            **graph_config(plan.layout),
            **identity(plan),
            "graph_sha256": graph_sha256,
            "golden": onnx_runner.name(),
            "modules_to_not_convert": plan.prepared.dense,
            "limits": dict(plan.source.limits),
        }
        packed_writer.write_config(self._folder, plan.config, quantization)
        for name, content in plan.source.files.items():
            (self._folder / name).write_bytes(content)


def made_by(folder: Path, plan: GraphPlan) -> bool:
    """Tell whether `folder` holds the packed model that `plan` would make; raise if it is damaged."""
    if kind(folder) != MODEL_TYPE:
        return False
    expected = {**coding_config(plan.layout, plan.settings), **identity(plan)}
    found = PackedGraph(folder).quantization
    return all(found.get(key) == value for key, value in json.loads(json.dumps(expected)).items())


def identity(plan: GraphPlan) -> dict[str, object]:
    """Return what tells whether a packed model is what `plan` would make."""
    examples = plan.examples
    digest = hashlib.sha256()
    for name, array in sorted((examples or {}).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return {
        "source": plan.source.source_hash,
        "calibration": {"examples": count(examples), "sha256": digest.hexdigest()} if examples else None,
    }


def count(examples: Tensors | None) -> int:
    """Return how many examples there are: entries of the longest first axis."""
    return max((len(a) if a.ndim else 1 for a in (examples or {}).values()), default=0)


def _activations(model: onnx.ModelProto) -> dict[str, str]:
    """Return the name of the activation that each linear reads (the first, if several)."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1].endswith(WEIGHT):
            found.setdefault(node.input[1].removesuffix(WEIGHT), node.input[0])
    return found


def _write_golden(packed: PackedGraph, plan: GraphPlan) -> None:
    """Write what the graph computes with the dequantized weights for a few examples."""
    model, values = packed.graph(), plan.prepared.inputs()
    if plan.examples is None and plan.source.inputs is not None:
        inputs = plan.source.inputs
    elif plan.examples is None:
        inputs = onnx_runner.made_up(model, values, plan.settings.seed)
    else:
        inputs = next(onnx_runner.calls(values, plan.examples))
    weights = {
        name + WEIGHT: np.ascontiguousarray(dequantize(packed.weight(name)).T)
        for name in packed.linears()
    }
    outputs = onnx_runner.run(model, {**inputs, **weights})
    stored = {f"input.{name}": value for name, value in inputs.items()}
    stored |= {f"output.{name}": value for name, value in outputs.items()}
    for name, value in stored.items():
        if value.dtype not in SAFETENSORS:
            raise UnsupportedError(
                f"{plan.path}: {name} is of {value.dtype}, which no artifact takes; cast it."
            )
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise UnsupportedError(
                f"{plan.path}: {name} holds NaN or Inf on the golden inputs; give real inputs with "
                "--calib."
            )
    tensors = {n: (SAFETENSORS[v.dtype], np.ascontiguousarray(v)) for n, v in stored.items()}
    packed_writer.write_shard(packed.path / GOLDEN, tensors)
