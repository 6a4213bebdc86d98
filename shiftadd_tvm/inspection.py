"""Say what a path holds: a packed model, an artifact or a checkpoint, and what is in it."""

import dataclasses
import importlib
from collections.abc import Iterable
from pathlib import Path

from shiftadd_tvm.artifact import LIBRARY, PARAMETERS, Artifact, TensorSpec, is_artifact
from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.packed import is_packed, kind, open_packed

Fields = dict[str, object]


def inspect(path: str | Path, config: Path | None = None, ops: bool = False) -> Fields:
    """Return `kind`, `version`, `effective_bits` and more; raises for what is no model.

    `ops` adds what the kernels of an artifact do, by classes of instructions.
    """
    place = Path(path)
    if is_artifact(place):
        artifact = Artifact(place)
        described = _function if artifact.manifest["kind"] == "function" else _artifact
        return described(artifact) | (_operations(artifact) if ops else {})
    if ops:
        raise UsageError(
            f"--ops counts instructions of compiled kernels, and {path} holds none; "
            "compile it and name the artifact."
        )
    if is_packed(place):
        return _packed_graph(place) if kind(place) == "onnx" else _packed(place)
    if importlib.import_module("shiftadd_tvm.onnx_workflow").is_graph(place):
        return _graph(place)
    if place.is_dir() and not (place / "config.json").is_file() and config is None:
        raise BadFileError(
            f"{path} is neither an artifact (no manifest.json) nor a packed model or checkpoint "
            "(no config.json); name a folder or file of shiftadd-tvm or Hugging Face."
        )
    # only here: an artifact is inspected where nothing but the runtime is installed
    sources = importlib.import_module("shiftadd_tvm.source_inspection")
    fields: Fields = sources.inspect_source(path, config)
    return fields


def _artifact(artifact: Artifact) -> Fields:
    manifest, model = artifact.manifest, artifact.section("model")
    quantization = artifact.section("quantization")
    return {
        "kind": "artifact",
        "version": manifest["schema"],
        "model_kind": manifest["kind"],
        "model_type": model.get("type"),
        "bits": quantization.get("bits"),
        "effective_bits": quantization.get("effective_bits"),
        "target": artifact.section("target").get("preset"),
        "context": artifact.number("limits", "context"),
        "cache": artifact.cache(),
        "vocabulary": artifact.number("model", "vocabulary"),
        "layers": model.get("layers"),
        "library_bytes": (artifact.path / LIBRARY).stat().st_size,
        "parameter_bytes": (artifact.path / PARAMETERS).stat().st_size,
        "linear_bytes": quantization.get("linear_bytes"),
        "kernels": manifest.get("kernels"),
        "functions": sorted(artifact.section("functions")),
        "verified": manifest.get("verified"),
        "producer": manifest.get("producer"),
        **_bundle(artifact),
    }


def _bundle(artifact: Artifact) -> Fields:
    """Return what a bundle adds to an artifact, in fields of its own."""
    bundle = artifact.bundle()
    if bundle is None:
        return {}
    files = bundle.get("files")
    return {
        "bundle": bundle.get("kind"),
        "bundle_files": sorted(files) if isinstance(files, dict) else [],
        "embedded": bundle.get("embedded"),
    }


def _function(artifact: Artifact) -> Fields:
    manifest, quantization = artifact.manifest, artifact.section("quantization")
    return {
        "kind": "artifact",
        "version": manifest["schema"],
        "model_kind": manifest["kind"],
        "model_type": artifact.section("model").get("type"),
        "bits": quantization.get("bits"),
        "effective_bits": quantization.get("effective_bits"),
        "target": artifact.section("target").get("preset"),
        "library_bytes": (artifact.path / LIBRARY).stat().st_size,
        "parameter_bytes": (artifact.path / PARAMETERS).stat().st_size,
        "linear_bytes": quantization.get("linear_bytes"),
        "kernels": manifest.get("kernels"),
        "functions": {
            name: f"{_tensors(signature.inputs)} -> {_tensors(signature.outputs)}"
            for name, signature in artifact.signatures().items()
        },
        "verified": manifest.get("verified"),
        "producer": manifest.get("producer"),
    }


def _tensors(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]" for s in specs)


def _packed_graph(path: Path) -> Fields:
    model = importlib.import_module("shiftadd_tvm.onnx_packed").PackedGraph(path)
    stored = model.quantization
    kept = ("bits", "scales", "rotation", "calibration", "method", "modules_to_not_convert")
    return {
        "kind": "packed",
        "version": stored["version"],
        "model_kind": stored["kind"],
        "model_type": model.config["model_type"],
        "effective_bits": model.effective_bits(),
        "linears": len(model.linears()),
        "linear_bytes": model.linear_bytes(),
        "total_bytes": sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
        **{key: stored.get(key) for key in kept},
    }


def _graph(path: Path) -> Fields:
    """Return what an ONNX file is, and what it would take in 2, 3 and 4 bits; raises where it is not
    supported."""
    found: Fields = {"kind": "checkpoint", "version": None, "model_type": "onnx"}
    settings = importlib.import_module("shiftadd_tvm.settings").QuantizeSettings
    planned = importlib.import_module("shiftadd_tvm.onnx_workflow").plan(path, settings())
    for bits in (2, 3, 4):
        coding = {name: bits for name in planned.layout.bits}
        layout = dataclasses.replace(planned.layout, bits=coding)
        rest = planned.prepared.model.ByteSize()
        found[f"packed_{bits}bit_bytes"] = layout.linear_bytes() + rest
    return {
        **found,
        "bits": 32,
        "effective_bits": 32,
        "inputs": [value.name for value in planned.prepared.inputs()],
        "outputs": [value.name for value in planned.prepared.model.graph.output],
        "linears": len(planned.layout.shapes),
        "linear_weights": planned.layout.linear_weights(),
        "not_converted": planned.prepared.dense,
        "total_bytes": path.stat().st_size,
    }


def _operations(artifact: Artifact) -> Fields:
    kernels = importlib.import_module("shiftadd_tvm.kernel_inspection")
    counts = kernels.count_library(artifact.path / LIBRARY)
    return {"ops": {name: count.to_dict() for name, count in counts.items()}}


def _packed(path: Path) -> Fields:
    model = open_packed(path)
    stored = model.quantization
    return {
        "kind": "packed",
        "version": stored["version"],
        "model_kind": stored["kind"],
        "model_type": model.config["model_type"],
        "bits": stored["bits"],
        "effective_bits": model.effective_bits(),
        "layers": model.decoder.layers,
        "linears": len(model.linears()),
        "linear_bytes": model.linear_bytes(),
        "total_bytes": sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
        "scales": stored["scales"],
        "rotation": stored["rotation"],
        "embedding_bits": stored["embedding_bits"],
        "calibration": stored["calibration"],
        "method": stored.get("method"),
    }
