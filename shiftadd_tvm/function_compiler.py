"""From a packed graph to an artifact of kind `function`: graph, pipeline, parameters, gate."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tvm import relax
from tvm.ir import IRModule

from shiftadd_tvm import artifact, compiler, pipeline
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.compile_settings import CompileSettings
from shiftadd_tvm.compiler import CompileReport
from shiftadd_tvm.errors import UnsupportedError, UsageError
from shiftadd_tvm.files import staged
from shiftadd_tvm.function_graph import FUNCTION, FunctionGraph
from shiftadd_tvm.onnx_packed import PackedGraph
from shiftadd_tvm.packed import GOLDEN
from shiftadd_tvm.tensorfile import stream_tensors
from shiftadd_tvm.toolchain import find_linker
from shiftadd_tvm.tuning.log import open_logs


def _chosen(backend: Backend, settings: CompileSettings) -> CompileSettings:
    """Return the settings with the format that is meant; raise `UnsupportedError` for a GPU, `UsageError`
    for what only language models have."""
    if backend.device:
        raise UnsupportedError(
            f"Graphs are compiled for processors only, so far, not for {backend.name}; choose another "
            "--target (shiftadd-tvm targets)."
        )
    only = [settings.package] * bool(settings.package)
    only += ["cache"] * (settings.cache != artifact.CACHES[0])
    if only:
        raise UsageError(f"--{only[0]} is for language models; leave it out for a graph.")
    return replace(settings, activations=backend.chosen(settings.activations))


def compile_graph(
    model: PackedGraph,
    output: Path,
    backend: Backend,
    settings: CompileSettings,
    *,
    version: str,
    force: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> CompileReport:
    """Write the artifact of `model` for `backend` to `output`, after it passed the gate.

    `version` is ours, for the manifest. Raises `GateError` (nothing is published), `OutputError`, and
    `UnsupportedError` for operators that TVM does not import or that lack a kernel.
    """
    started = time.perf_counter()
    settings, linker = _chosen(backend, settings), find_linker(backend.machine)
    logs = open_logs(backend.name, settings.tuning_log)
    with (
        tempfile.TemporaryDirectory() as kept,
        staged(output, artifact.MANIFEST, force=force) as folder,
    ):
        progress("building the graph")
        graph = FunctionGraph(model, backend.rows, settings.activations)
        module = graph.build()
        held = compiler.held_as(module, settings.activations)
        functions = _signatures(module, [value.name for value in graph.graph.graph.output])
        progress("compiling kernels")
        executable, kernels = pipeline.build(module, backend, settings.dump_ir, logs)
        compiler.link(executable, folder / artifact.LIBRARY, linker, Path(kept))
        progress("packing parameters")
        found = graph.parameters
        stream_tensors(folder / artifact.PARAMETERS, [compiler.source(p, model) for p in found])
        shutil.copyfile(model.path / GOLDEN, folder / artifact.GOLDEN)
        manifest = {
            **compiler.producer(model, backend, settings, version),
            "kind": "function",
            "activations": {"lut_query": held},
            "functions": functions,
            "parameters": [
                {"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in found
            ],
            "limits": model.limits,
            "model": {"type": model.config["model_type"]},
            "kernels": dict(kernels),
        }
        manifest["files"] = compiler.files(folder)
        result = compiler.gate(folder, manifest, backend, settings, progress)
        progress("publishing")
    return CompileReport(
        target=backend.name,
        kernels=dict(kernels),
        library_bytes=(output / artifact.LIBRARY).stat().st_size,
        parameter_bytes=(output / artifact.PARAMETERS).stat().st_size,
        verify=result,
        seconds=time.perf_counter() - started,
    )


def _signatures(module: IRModule, outputs: list[str]) -> dict[str, object]:
    """Return the named input and output tensors of the function, its outputs called `outputs`."""
    function = module[FUNCTION]
    result = function.ret_ty
    types = list(result.fields) if isinstance(result, relax.TupleType) else [result]
    inputs = [p for p in function.params if compiler.is_tensor(p.ty)]
    return {
        FUNCTION: {
            "inputs": [compiler.tensor(p.name, p.ty) for p in inputs],
            "outputs": [compiler.tensor(*pair) for pair in zip(outputs, types, strict=True)],
            "parameters": True,
        }
    }
