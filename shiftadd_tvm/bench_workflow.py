"""Where the rooms meet for the verb `bench`: measure artifacts, published shapes and single operators."""

import importlib
import tempfile
from collections.abc import Callable, Sequence
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
    settings = make_settings(bits=bits, embedding_bits=8)
    model = _module("synthetic").SyntheticModel(_module("shapes").config(name), settings)
    context = models.context(request)
    if context > model.decoder.positions:
        raise UsageError(
            f"--prompt-tokens and --new-tokens make {context} tokens, {name} has "
            f"{model.decoder.positions} positions; ask for fewer."
        )
    with _module("runtime.library").without_torch():
        compiler = _module("compiler")
    with tempfile.TemporaryDirectory(prefix="shiftadd-bench-") as folder:
        artifact = Path(folder) / "artifact"
        chosen = _module("compile_settings").CompileSettings(
            context=context,
            cache=cache,
            load="hugepages",  # as the peers have them
            verify=False,
        )
        stage = lambda what: progress(0, 1, f"{name}: {what}")
        compiler.compile_model(model, artifact, backend, chosen, version=__version__, progress=stage)
        _module("files").flush(artifact)  # the disk's work must not go on beside the measurement
        return {**bench(artifact, request, progress=progress), "model": name}


def bench_kernels(
    shapes: "Sequence[tuple[int, int]] | str",
    bits: int,
    *,
    target: str | None = None,
    threads: int = 1,
    activations: str = "",
    scales: str = "separable",
    baselines: bool = False,
    progress: BenchProgress | None = None,
) -> dict[str, Any]:
    """Measure decode linears (outputs, inputs), or those of a published shape, by its name."""
    backends, kernels = _module("backend"), _module("benchmark.kernels")
    backend = backends.load(target) if target else backends.detect()
    if isinstance(shapes, str):
        shapes = _module("shapes").linear_shapes(shapes)
    chosen = backend.chosen(activations)
    formats = {"activations": chosen, "scales": scales}
    request = kernels.Request(shapes, bits, backend.name, threads, baselines, **formats)
    fields: dict[str, Any] = kernels.measure(request, progress or _silent)
    return fields


def _silent(done: int, total: int, what: str) -> None:
    pass
