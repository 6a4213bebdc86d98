"""The public verbs: from any source to a packed model, an artifact, a loaded model.

This is the only place where the rooms meet, so every room is imported by name, when a verb needs it:
`import shiftadd_tvm` and `--help` stay instant, and compiling a packed model never loads torch.
Where outputs go when nobody says is decided here too.
"""

import difflib
import importlib
import pkgutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftadd_tvm import __version__
from shiftadd_tvm.errors import OutputError, ShiftAddError, UsageError

if TYPE_CHECKING:
    from shiftadd_tvm.artifact import Artifact
    from shiftadd_tvm.backend import Backend
    from shiftadd_tvm.benchmark.models import Request
    from shiftadd_tvm.checkpoint_base import Checkpoint
    from shiftadd_tvm.compile_settings import CompileSettings
    from shiftadd_tvm.compiler import CompileReport
    from shiftadd_tvm.packed import PackedModel
    from shiftadd_tvm.quantization import QuantizeReport
    from shiftadd_tvm.runtime.generation import TextModel
    from shiftadd_tvm.settings import QuantizeSettings

DEFAULT_BITS = 4
DEFAULT_EFFORT = "normal"

QuantizeProgress = Callable[[int, int, str], None]  # weights done, weights in all, what
BenchProgress = Callable[[int, int, str], None]  # rounds done, rounds in all, what
Stage = Callable[[str], None]


def _module(name: str) -> Any:
    return importlib.import_module(f"shiftadd_tvm.{name}")


@dataclass(frozen=True)
class QuantizePlan:
    """What `quantize` would do; `fields` is `quantize_plan.plan`'s estimate."""

    checkpoint: "Checkpoint"
    output: Path
    settings: "QuantizeSettings"
    fields: dict[str, Any]


@dataclass(frozen=True)
class CompilePlan:
    """What `compile` would do: with `quantize`, the packed model is made first."""

    packed: Path
    output: Path
    backend: "Backend"
    quantize: QuantizePlan | None
    reused: bool  # the packed model was found where a plain checkpoint's would be made
    settings: "CompileSettings"


def quantized_output(source: str | Path, bits: float) -> Path:
    """Return where the packed model of `source` goes: beside it, or here for a hub's name."""
    path = Path(source)
    if not path.exists():
        return Path(f"{path.name}-shiftadd-{bits:g}bit")
    path = path.resolve() if path.name in ("", "..") else path
    name = path.name if path.is_dir() else path.stem
    return path.parent / f"{name}-shiftadd-{bits:g}bit"


def compiled_output(packed: Path, preset: str) -> Path:
    """Return where the artifact of the packed model goes: beside it."""
    path = packed.resolve() if packed.name in ("", "..") else packed
    return path.parent / f"{path.name}-{preset}"


def make_settings(**values: Any) -> "QuantizeSettings":
    """Return the settings; raises `UsageError` for a value that cannot be used.

    The method is the calibrated one where nobody says otherwise and the scales are what it fits.
    """
    separable = values.get("scale_format", "separable") == "separable"
    values = {"method": "shiftadd" if separable else "alternating", **values}
    settings: QuantizeSettings = _module("settings").QuantizeSettings(**values)
    known = [
        m.name for m in pkgutil.iter_modules(_module("quantizers").__path__) if m.name[0] != "_"
    ]
    if settings.method not in known:
        near = difflib.get_close_matches(settings.method, known, 1, 0)
        raise UsageError(
            f"--method is {settings.method!r}, the nearest is {near[0]!r}; known are {', '.join(known)}."
        )
    return settings


def plan_quantize(
    source: str | Path,
    output: str | Path | None = None,
    settings: "QuantizeSettings | None" = None,
    *,
    config: str | Path | None = None,
    target_size: int | None = None,
) -> QuantizePlan:
    """Open and check `source`, and return what `quantize` would make of it.

    With a `target_size`, in bytes, the bits are as many as fit into it.
    """
    settings = settings or make_settings(bits=DEFAULT_BITS)
    checkpoint = _module("checkpoint").open_checkpoint(source, config)
    planning = _module("quantize_plan")
    if target_size is not None:
        bits = planning.bits_within(checkpoint, settings, target_size)
        settings = replace(settings, bits=bits)
    fields = planning.plan(checkpoint, settings)
    place = Path(output) if output else quantized_output(source, fields["nominal_bits"])
    return QuantizePlan(checkpoint, place, settings, fields)


def check_memory(plan: QuantizePlan, limit: float | None = None) -> int:
    """Return the bytes that a plan needs at most; raise `UsageError` if they exceed `limit` GB, or
    the machine's memory."""
    decoder = _module("families").read_config(plan.checkpoint.config)
    needed: int = _module("quantize_memory").check(decoder, plan.settings, limit)
    return needed


def run_quantize(
    plan: QuantizePlan,
    *,
    resume: bool = True,
    force: bool = False,
    progress: QuantizeProgress | None = None,
) -> "QuantizeReport":
    """Carry out a plan."""
    report: QuantizeReport = _module("quantization").quantize(
        plan.checkpoint, plan.output, plan.settings, resume=resume, force=force, progress=progress
    )
    return report


def quantize(
    source: str | Path,
    output: str | Path | None = None,
    *,
    config: str | Path | None = None,
    resume: bool = True,
    force: bool = False,
    target_size: int | None = None,
    progress: QuantizeProgress | None = None,
    **settings: Any,
) -> "QuantizeReport":
    """Quantize a checkpoint into a packed model; `settings` are those of `QuantizeSettings`."""
    wanted = make_settings(**settings)
    plan = plan_quantize(source, output, wanted, config=config, target_size=target_size)
    return run_quantize(plan, resume=resume, force=force, progress=progress)


def plan_compile(
    source: str | Path,
    output: str | Path | None = None,
    *,
    target: str | None = None,
    bits: float | None = None,
    effort: str = DEFAULT_EFFORT,
    config: str | Path | None = None,
    force: bool = False,
    **settings: Any,
) -> CompilePlan:
    """Check everything that can be checked before the work, and return what `compile` would do.

    `settings` are those of `CompileSettings`.
    """
    backends = _module("backend")
    backend = backends.load(target) if target else backends.detect()
    plan = plan_source(source, output, backend, bits, config, effort, **settings)
    _module("files").refuse_existing(plan.output, _module("artifact").MANIFEST, force)
    # Before torch, which tvm_ffi would otherwise take up; and a broken TVM shows before the work.
    with _module("runtime.library").without_torch():
        compiler = _module("compiler")
    if plan.quantize is not None:
        check_memory(plan.quantize)
        decoder = _module("families").read_config(plan.quantize.checkpoint.config)
        compiler.check_context(decoder.positions, plan.settings.context)
    return plan


def plan_source(
    source: str | Path,
    output: str | Path | None,
    backend: "Backend",
    bits: float | None,
    config: str | Path | None,
    effort: str = DEFAULT_EFFORT,
    **settings: Any,
) -> CompilePlan:
    """Return how `source` becomes a packed model for `backend`, and where its artifact goes.

    `settings` are those of `CompileSettings`.
    """
    chosen = _module("compile_settings").CompileSettings(**settings)
    if _module("packed").is_packed(source):
        if bits is not None or config is not None:
            raise UsageError(
                f"{source} is a packed model, its bits and its config.json are fixed; leave out "
                "--bits and --config, or give the original checkpoint."
            )
        packed = Path(source)
        place = Path(output) if output else compiled_output(packed, backend.name)
        return CompilePlan(packed, place, backend, None, False, chosen)
    wanted = make_settings(bits=DEFAULT_BITS if bits is None else bits, effort=effort)
    first = plan_quantize(source, None, wanted, config=config)
    place = Path(output) if output else compiled_output(first.output, backend.name)
    reused = first.output.exists()
    if reused:
        _check_same(first)
    return CompilePlan(first.output, place, backend, None if reused else first, reused, chosen)


def _check_same(plan: QuantizePlan) -> None:
    """Raise `OutputError` unless the packed model at the plan's output is what it would make."""
    if _module("packed").is_packed(plan.output):
        found = _module("packed").open_packed(plan.output).quantization
        if _module("packed_config").made_by(found, plan.checkpoint, plan.settings):
            return
    raise OutputError(
        f"{plan.output} already exists, but it is not {plan.checkpoint.path} quantized with these "
        f"settings; remove it, or compile it itself (shiftadd-tvm compile {plan.output})."
    )


def run_compile(
    plan: CompilePlan,
    *,
    force: bool = False,
    progress: Stage = lambda stage: None,
) -> "CompileReport":
    """Carry out a plan whose packed model exists by now."""
    model: PackedModel = _module("packed").open_packed(plan.packed)
    report: CompileReport = _module("compiler").compile_model(
        model,
        plan.output,
        plan.backend,
        plan.settings,
        version=__version__,
        force=force,
        progress=progress,
    )
    return report


def compile(
    source: str | Path,
    output: str | Path | None = None,
    *,
    target: str | None = None,
    bits: float | None = None,
    effort: str = DEFAULT_EFFORT,
    config: str | Path | None = None,
    force: bool = False,
    **settings: Any,
) -> "CompileReport":
    """Compile a packed model, or a checkpoint that is quantized first, into an artifact.

    `settings` are those of `CompileSettings`.
    """
    plan = plan_compile(
        source,
        output,
        target=target,
        bits=bits,
        effort=effort,
        config=config,
        force=force,
        **settings,
    )
    if plan.quantize is not None:
        run_quantize(plan.quantize)
    return run_compile(plan, force=force)


def load(path: str | Path, *, threads: int | None = None) -> "TextModel":
    """Load an artifact to generate text with: `load(path).generate("Once upon a time")`."""
    model: TextModel = _module("runtime.generation").TextModel(path, threads=threads)
    return model


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
        chosen = _module("compile_settings").CompileSettings(context=context, verify=False)
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
    baselines: bool = False,
    progress: BenchProgress | None = None,
) -> dict[str, Any]:
    """Measure decode linears (outputs, inputs), or those of a published shape, by its name."""
    backends, kernels = _module("backend"), _module("benchmark.kernels")
    backend = backends.load(target) if target else backends.detect()
    if isinstance(shapes, str):
        shapes = _module("shapes").linear_shapes(shapes)
    request = kernels.Request(shapes, bits, backend.name, threads, baselines)
    fields: dict[str, Any] = kernels.measure(request, progress or _silent)
    return fields


def _silent(done: int, total: int, what: str) -> None:
    pass


def verify(
    path: Path, golden: Path | None = None
) -> tuple[dict[str, object], ShiftAddError | None]:
    """Return what is known of an artifact, and the error if it is not whole and right.

    An artifact that passes with its own golden file is marked as verified.
    """
    fields: dict[str, object] = {"files_ok": False, "max_logit_error": None, "tokens_equal": None}
    try:
        artifact = _module("artifact").Artifact(path)
        artifact.check_hashes()
        fields["files_ok"] = True
        artifact.check_machine()
        gate = _module("verification")
        result = gate.measure(path, golden)
        fields |= asdict(result)
        gate.require(result, path, "do not use it, compile it again")
        if golden is None:
            _mark_verified(artifact)
    except ShiftAddError as error:
        return fields, error
    return fields, None


def _mark_verified(artifact: "Artifact") -> None:
    """Set "verified" in the manifest, atomically."""
    if artifact.manifest.get("verified") is True:
        return
    manifest = artifact.path / _module("artifact").MANIFEST
    temporary = manifest.with_suffix(".tmp")
    try:
        content = _module("files").canonical_json({**artifact.manifest, "verified": True})
        temporary.write_bytes(content)
        temporary.replace(manifest)
    except OSError as error:
        raise OutputError(f"{manifest} cannot be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)
