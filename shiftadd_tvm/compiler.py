"""From a packed model to an artifact: graph, pipeline, parameters, gate, publication."""

import importlib.metadata
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import IRModule
from tvm.tirx import IntImm, PrimFunc

from shiftadd_tvm import artifact, chat_form, graph, parameters, pipeline, verification
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.captured_steps import is_captured
from shiftadd_tvm.coded_tensors import CodedTensors
from shiftadd_tvm.compile_settings import BATCHES, CompileSettings
from shiftadd_tvm.cuda import codegen, toolkit
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.files import canonical_json, compact_json, sha256, staged
from shiftadd_tvm.fused_producers import ENDS
from shiftadd_tvm.ops import OP, lut_float
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.packed import GOLDEN, PackedModel
from shiftadd_tvm.sdk import packaging
from shiftadd_tvm.tensorfile import ALIGNMENT, Source, stream_tensors
from shiftadd_tvm.toolchain import Linker, find_linker
from shiftadd_tvm.tuning.log import TuningLog, lookup_rows, open_logs

DEFAULT_CONTEXT = 2048
LINK_ROOM = 64 << 20  # bytes of disk to have free for object files and model.so


Progress = Callable[[str], None]


@dataclass(frozen=True)
class CompileReport:
    """The result as `--json` prints it."""

    target: str
    kernels: dict[str, int]
    library_bytes: int
    parameter_bytes: int
    verify: dict[str, object] | None
    seconds: float
    package: dict[str, object] | None = None  # its kind, and its bytes beside parameters and tokenizer


def compile_model(
    model: PackedModel,
    output: Path,
    backend: Backend,
    settings: CompileSettings,
    *,
    version: str,
    force: bool = False,
    progress: Progress = lambda stage: None,
) -> CompileReport:
    """Write the artifact of `model` for `backend` to `output`, after it passed the gate.

    `version` is ours, for the manifest. Raises `GateError` (nothing is published), `UsageError`,
    `UnsupportedError`, `OutputError`.
    """
    started = time.perf_counter()
    backend = backend.launching(settings.launches)
    settings = replace(settings, activations=backend.chosen(settings.activations))
    linker = find_linker(backend.machine)  # before the work that it would waste
    _check_device(backend, settings)
    context = check_context(model.decoder.positions, settings.context)
    logs = open_logs(backend.name, settings.tuning_log)
    if settings.package:
        progress("preparing libraries")
        packaging.prepare(settings.package, backend.machine, backend.device)
    with (
        tempfile.TemporaryDirectory() as kept,
        staged(output, artifact.MANIFEST, force=force) as folder,
    ):
        progress("building the graph")
        wanted = (settings.activations, settings.batches, settings.cache)
        module, found = relax_module(model, backend, *wanted)
        signatures, held = _signatures(module, backend), held_as(module, settings.activations)
        progress("compiling kernels")
        path = folder / artifact.LIBRARY
        kernels = _library(module, backend, path, linker, settings.dump_ir, logs, Path(kept))
        progress("packing parameters")
        stream_tensors(folder / artifact.PARAMETERS, [source(p, model) for p in found])
        _copy_files(model, folder)
        limits = _limits(graph.chunk(backend.device), context, settings.batches, lookup_rows(logs))
        manifest = _manifest(
            model, backend, settings, held, limits, found, signatures, kernels, version
        )
        manifest["files"] = files(folder)
        if settings.package:
            progress("packaging")
            manifest |= _package(folder, manifest, backend, settings, Path(kept))
        result = gate(folder, manifest, backend, settings, progress)
        progress("publishing")
    return CompileReport(
        target=backend.name,
        kernels=dict(kernels),
        library_bytes=(output / artifact.LIBRARY).stat().st_size,
        parameter_bytes=(output / artifact.PARAMETERS).stat().st_size,
        verify=result,
        seconds=time.perf_counter() - started,
        package=packaging.summary(output, manifest) if settings.package else None,
    )


def relax_module(
    model: PackedModel,
    backend: Backend,
    activations: str,
    batches: tuple[int, ...] = BATCHES,
    cache: str = artifact.CACHES[0],
) -> tuple[IRModule, list[parameters.Parameter]]:
    """Return the module that is compiled for `backend`, and the parameters of its functions.

    `activations` is the format of look-ups, one of `ACTIVATIONS`; `batches` says how many sequences
    each decode function takes, `cache` how keys and values are held, one of `artifact.CACHES`.
    """
    groups = parameters.groups(model, backend.rows, activations)
    found = parameters.parameters(model, groups, backend.lanes, backend.rows)
    wanted = (activations, batches, cache, graph.chunk(backend.device), bool(backend.device))
    return graph.build(model, found, groups, *wanted), found


def held_as(module: IRModule, activations: str) -> str:
    """Return the loosest format in which the look-ups of a module hold activations, where `activations`
    was asked for: scales without a fast form leave them as they are."""
    functions = (f for _, f in module.functions_items() if isinstance(f, PrimFunc))
    rounding = ("lut_build", "lut_fix", "lut_round")
    rounded = any((f.attrs or {}).get(OP) in rounding + ENDS for f in functions)
    return activations if rounded else lut_float.NAME


def check_context(positions: int, wanted: int | None) -> int:
    """Return the context of an artifact whose model has `positions`; `UsageError` if it has fewer."""
    if wanted is None:
        return min(positions, DEFAULT_CONTEXT)
    if not 1 <= wanted <= positions:
        raise UsageError(
            f"--context is {wanted}, expected 1 to {positions}, the model's positions."
        )
    return wanted


def _check_device(backend: Backend, settings: CompileSettings) -> None:
    """Raise `UnsupportedError` without the compiler of a GPU, `UsageError` for what it cannot have."""
    if backend.device and settings.cache != artifact.CACHES[0]:
        raise UsageError(f"--cache {settings.cache} is for processors only, so far; leave it out.")
    if backend.device:
        toolkit.find()


def _library(
    module: IRModule,
    backend: Backend,
    path: Path,
    linker: Linker,
    dump: Path | None,
    logs: Sequence[TuningLog],
    kept: Path,
) -> Counter[str]:
    """Write the library of a module (and into `kept` what it is linked from); return kernel counts."""
    if backend.device:
        _reserve(path.parent)
        lowered, kernels = pipeline.lower(module, backend, dump, logs)
        codegen.build(lowered, backend.target, path, linker, dump, overlap=backend.overlap)
        return kernels
    executable, kernels = pipeline.build(module, backend, dump, logs)
    link(executable, path, linker, kept)
    return kernels


def _reserve(folder: Path) -> None:
    """Raise `OSError` unless `folder` has room: LLVM ends the process when it cannot write."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        os.posix_fallocate(probe.fileno(), 0, LINK_ROOM)


def link(executable: relax.VMExecutable, path: Path, linker: Linker, kept: Path) -> None:
    """Write the library at `path`, and what it was linked from into the folder `kept`."""
    for folder in (path.parent, Path(tempfile.gettempdir())):
        _reserve(folder)

    def linked(output: str, objects: list[str], options: Any = None) -> None:
        linker.link(Path(output), objects)
        for item in objects:
            shutil.copyfile(item, kept / Path(item).name)

    executable.export_library(str(path), fcompile=linked)


def _package(
    folder: Path,
    manifest: dict[str, object],
    backend: Backend,
    settings: CompileSettings,
    kernels: Path,
) -> dict[str, object]:
    assert settings.package is not None
    return packaging.package(
        folder,
        manifest,
        settings.package,
        sorted(kernels.iterdir()),
        embed=settings.embed_parameters,
        verified=settings.verify and backend.runs_here(),
    )


def source(parameter: parameters.Parameter, model: CodedTensors) -> Source:
    """Return a parameter as it is stored: its bytes, padded."""
    nbytes = math.prod(parameter.shape) * np.dtype(parameter.dtype).itemsize
    padded = -(-nbytes // ALIGNMENT) * ALIGNMENT

    def read() -> np.ndarray:
        array = np.ascontiguousarray(parameter.read())
        assert (array.shape, str(array.dtype)) == (parameter.shape, parameter.dtype), parameter.name
        raw = np.zeros(padded, np.uint8)
        raw[:nbytes] = array.reshape(-1).view(np.uint8)
        model.release()  # what was packed is not needed again
        return raw

    return Source(parameter.name, "U8", (padded,), read)


def _copy_files(model: PackedModel, folder: Path) -> None:
    if model.has_golden:
        shutil.copyfile(model.path / GOLDEN, folder / artifact.GOLDEN)
    tokenizer = model.tokenizer_files()
    form = chat_form.find_form(tokenizer.get, model.path)
    if form is not None:  # hosts that know no jinja read it
        tokenizer[chat_form.FILE] = canonical_json(form.to_dict())
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)


def files(folder: Path) -> dict[str, object]:
    """Return bytes and sha256 of every file of an artifact but the manifest."""
    paths = sorted(path for path in folder.iterdir() if path.name != artifact.MANIFEST)
    return {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in paths}


def _signatures(module: IRModule, backend: Backend) -> dict[str, object]:
    """Return the named input and output tensors of every exported function, and what else it takes."""
    functions = {
        v.name_hint: f for v, f in module.functions_items() if isinstance(f, relax.Function)
    }
    return {
        name: {
            "inputs": [tensor(p.name, p.ty) for p in function.params if is_tensor(p.ty)],
            "outputs": [tensor(RESULTS[name.partition("_b")[0]], function.ret_ty)],
            "parameters": len(function.params) > 0 and not is_tensor(function.params[-1].ty),
            **({"captured": True} if backend.device and is_captured(name) else {}),
        }
        for name, function in sorted(functions.items())
    }


RESULTS = {
    "embed": "x",
    "prefill": "hidden",
    "logits": "logits",
    "decode": "logits",
    "sample": "tokens",
    "read_memory": "sums",
    "read_memory_ahead": "sums",
}


def is_tensor(type_: Any) -> bool:
    """Tell whether a Relax type is that of one tensor."""
    return isinstance(type_, relax.TensorType)


def tensor(name: str, type_: Any) -> dict[str, object]:
    """Return name, dtype and shape of a Relax tensor type as the manifest has them."""
    sizes = type_.shape.values
    shape = [int(size) if isinstance(size, IntImm) else str(size) for size in sizes]
    return {"name": name, "dtype": str(type_.dtype), "shape": shape}


def _manifest(
    model: PackedModel,
    backend: Backend,
    settings: CompileSettings,
    activations: str,
    limits: dict[str, object],
    found: list[parameters.Parameter],
    signatures: dict[str, object],
    kernels: Counter[str],
    version: str,
) -> dict[str, object]:
    return {
        **producer(model, backend, settings, version),
        "kind": "decoder",
        "command": settings.command(backend.name, limits["context"]),
        "activations": {"lut_query": activations},
        "functions": signatures,
        "parameters": [{"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in found],
        "looked_up": looked_up(model, found),
        "limits": limits,
        "model": _model_facts(model),
        "kernels": dict(kernels),
    }


def producer(
    model: CodedTensors, backend: Backend, settings: CompileSettings, version: str
) -> dict[str, object]:
    """Return what the manifest says of any kind of artifact: who made it, from what, for what."""
    versions = {name: importlib.metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi")}
    quantization = {key: model.quantization[key] for key in ("bits", "scales", "rotation")}
    return {
        "schema": artifact.SCHEMA,
        "abi": artifact.ABI,
        "producer": {"shiftadd-tvm": version, **versions},
        "target": {
            "preset": backend.name,
            "machine": backend.machine,
            "features": list(backend.features),
            **({"device": backend.device} if backend.device else {}),
            "tvm": backend.target,
        },
        "packed_order": backend.order,
        "quantization": {
            **quantization,
            "effective_bits": model.effective_bits(),
            "linear_bytes": model.linear_bytes(),
        },
        "command": settings.command(backend.name),
        "load": settings.load,
        "verified": False,
    }


def _limits(
    chunk: int, context: int, batches: tuple[int, ...], looked_up: int | None
) -> dict[str, object]:
    return {
        "context": context,
        "page": PAGE,
        "chunk": chunk,
        "logit_rows": graph.LOGIT_ROWS,
        "batches": list(batches),
        "lookup_rows": looked_up or 1,  # prompts up to this go through decode
    }


def _model_facts(model: PackedModel) -> dict[str, object]:
    decoder = model.decoder
    return {
        "type": model.config["model_type"],
        "vocabulary": decoder.vocabulary,
        "layers": decoder.layers,
        "hidden": decoder.hidden,
        "intermediate": decoder.intermediate,
        "heads": decoder.heads,
        "kv_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "tied_embeddings": decoder.tied_embeddings,
        "bos": list(decoder.bos),
        "eos": list(decoder.eos),
    }


def looked_up(model: PackedModel, found: list[parameters.Parameter]) -> list[str]:
    """Return the parameters of which a step reads one row a token, and not all."""
    decoder = model.decoder
    names = () if decoder.tied_embeddings else ("weight", "weight_scale")
    wanted = {f"{decoder.embedding}.{name}" for name in names}
    wanted.add(f"{decoder.position_embedding}.weight")
    return [parameter.name for parameter in found if parameter.name in wanted]


def gate(
    folder: Path,
    manifest: dict[str, object],
    backend: Backend,
    settings: CompileSettings,
    progress: Progress,
) -> dict[str, object] | None:
    """Write the manifest and, where the target runs here, check the artifact; raise `GateError`."""
    path = folder / artifact.MANIFEST
    path.write_bytes(compact_json(manifest))
    if not settings.verify or not backend.runs_here():
        return None
    progress("verifying against the packed model")
    result = verification.verify(folder)
    path.write_bytes(compact_json({**manifest, "verified": True}))
    return asdict(result)
