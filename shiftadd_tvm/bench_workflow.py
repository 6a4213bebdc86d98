"""Where the rooms meet for the verb `bench`: measure artifacts, published shapes and single operators."""

import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftadd_tvm import __version__
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.workflow import make_settings

if TYPE_CHECKING:
    from shiftadd_tvm.benchmark.models import Request

BenchProgress = Callable[[int, int, str], None]  # rounds done, rounds in all, what


def _module(name: str) -> Any:
    return importlib.import_module(f"shiftadd_tvm.{name}")


def bench(
    path: str | Path, request: "Request", *, progress: BenchProgress | None = None
) -> dict[str, Any]:
    """Measure an artifact; return the fields of `bench --json`."""
    fields: dict[str, Any] = _module("benchmark.models").measure(
        Path(path), request, progress or _silent
    )
    return {"model": str(path), **fields}


def bench_synthetic(
    name: str,
    bits: int,
    request: "Request",
    *,
    target: str | None = None,
    cache: str = "float32",
    progress: BenchProgress | None = None,
) -> dict[str, Any]:
    """Compile a published shape with made-up weights into a temporary folder, and measure it."""
    progress = progress or _silent
    backends, models = _module("backend"), _module("benchmark.models")
    backend = backends.load(target) if target else backends.detect()
    model = _made_up(name, bits)
    context = models.context(request)
    if context > model.decoder.positions:
        raise UsageError(
            f"--prompt-tokens and --new-tokens make {context} tokens, {name} has "
            f"{model.decoder.positions} positions; ask for fewer."
        )
    with _module("runtime.library").without_torch():
        compiler = _module("compiler")
    half = _module("synthetic").HALF_BITS
    with tempfile.TemporaryDirectory(prefix="shiftadd-bench-") as folder:
        chosen = _module("compile_settings").CompileSettings(
            context=context,
            cache=cache,
            load="hugepages",  # as the peers have them
            verify=False,
        )

        def compiled(model: Any, bits: int) -> Path:
            artifact = Path(folder) / str(bits)
            stage = lambda what: progress(0, 1, f"{name}, {bits} bits: {what}")
            given = {"version": __version__, "progress": stage}
            compiler.compile_model(model, artifact, backend, chosen, **given)
            _module("files").flush(artifact)  # the disk's work must not go on beside the measurement
            return artifact

        artifact = compiled(model, bits)
        if request.baselines and backend.device and bits != half:
            request = replace(request, beside=compiled(_made_up(name, half), half))
        return {**bench(artifact, request, progress=progress), "model": name}


def _made_up(name: str, bits: int) -> Any:
    """Return the model of a published shape; of float16 numbers, where so many bits are asked for."""
    synthetic, config = _module("synthetic"), _module("shapes").config(name)
    if bits == synthetic.HALF_BITS:
        return synthetic.HalfModel(config)
    return synthetic.SyntheticModel(config, make_settings(bits=bits, embedding_bits=8))


def bench_kernels(
    shapes: "Sequence[tuple[int, int]] | str",
    bits: int,
    *,
    target: str | None = None,
    threads: int = 1,
    activations: str = "",
    scales: str = "separable",
    baselines: bool = False,
    output: Path | None = None,
    progress: BenchProgress | None = None,
) -> dict[str, Any]:
    """Measure decode linears (outputs, inputs), or those of a published shape, by its name.

    On GPUs, `output` is a folder for a program that measures where the GPU is: nothing is measured here.
    """
    backends, progress = _module("backend"), progress or _silent
    backend = backends.load(target) if target else backends.detect()
    if isinstance(shapes, str):
        shapes = _module("shapes").linear_shapes(shapes)
    chosen = backend.chosen(activations)
    if backend.device:
        return _bench_look_ups((shapes, bits, chosen, baselines), scales, backend, output, progress)
    if output:
        raise UsageError(f"-o is for GPUs that are elsewhere; {backend.name} is measured where it runs.")
    kernels, formats = _module("benchmark.kernels"), {"activations": chosen, "scales": scales}
    request = kernels.Request(shapes, bits, backend.name, threads, baselines, **formats)
    fields: dict[str, Any] = kernels.measure(request, progress)
    return fields


def _bench_look_ups(
    wanted: tuple[Any, ...], scales: str, backend: Any, output: Path | None, progress: BenchProgress
) -> dict[str, Any]:
    if scales != "separable":
        raise UsageError(f"--scales {scales} is measured on processors only, not on {backend.name}.")
    with _module("runtime.library").without_torch():
        on_gpus = _module("gpu_kernel_bench")
    request = on_gpus.Request(*wanted)
    if output is None:
        fields: dict[str, Any] = on_gpus.measure(request, backend, progress)
        return fields
    with _module("files").staged(output, on_gpus.PROGRAM) as folder:
        on_gpus.build(folder / on_gpus.PROGRAM, request, backend, progress)
    return {"target": backend.name, "bits": request.bits, "program": str(output / on_gpus.PROGRAM)}


def _silent(done: int, total: int, what: str) -> None:
    pass
