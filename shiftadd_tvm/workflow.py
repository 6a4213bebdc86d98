"""The public verbs: from any source to a packed model, an artifact, a loaded model.

This is the only place where the rooms meet, so every room is imported by name, when a verb needs it:
`import shiftadd_tvm` and `--help` stay instant, and compiling a packed model never loads torch.
Where outputs go when nobody says is decided here too.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftadd_tvm import __version__
from shiftadd_tvm.errors import OutputError, ShiftAddError, UsageError

if TYPE_CHECKING:
    from shiftadd_tvm.artifact import Artifact
    from shiftadd_tvm.backend import Backend
    from shiftadd_tvm.checkpoint_base import Checkpoint
    from shiftadd_tvm.compile_settings import CompileSettings
    from shiftadd_tvm.compiler import CompileReport
    from shiftadd_tvm.onnx_packed import PackedGraph
    from shiftadd_tvm.onnx_quantization import GraphPlan
    from shiftadd_tvm.packed import PackedModel
    from shiftadd_tvm.quantization import QuantizeReport
    from shiftadd_tvm.runtime.function import FunctionModel
    from shiftadd_tvm.runtime.generation import TextModel
    from shiftadd_tvm.settings import QuantizeSettings

DEFAULT_BITS = 4
DEFAULT_EFFORT = "normal"

QuantizeProgress = Callable[[int, int, str], None]  # weights done, weights in all, what
Stage = Callable[[str], None]


def _module(name: str) -> Any:
    return importlib.import_module(f"shiftadd_tvm.{name}")


@dataclass(frozen=True)
class QuantizePlan:
    """What `quantize` would do; `fields` is `quantize_plan.plan`'s estimate."""

    checkpoint: "Checkpoint | GraphPlan"
    output: Path
    settings: "QuantizeSettings"
    fields: dict[str, Any]
    is_graph: bool = False  # an ONNX file, or an encoder


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

    The method is the calibrated one where nobody says otherwise and the scales are those it is best at.
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
    outputs: Sequence[str] = (),
) -> QuantizePlan:
    """Open and check `source`, and return what `quantize` would make of it.

    With a `target_size`, in bytes, the bits are as many as fit into it. `outputs` names values of an
    ONNX graph that take the place of its outputs.
    """
    settings = settings or make_settings(bits=DEFAULT_BITS)
    graphs = _module("onnx_workflow")
    planned: Any
    if is_graph := graphs.is_graph(source, outputs):
        planned = graphs.plan(source, settings, outputs, config, target_size)
    else:
        planned = _module("checkpoint").open_checkpoint(source, config)
        if is_graph := _module("encoder_families").is_encoder(planned.config):
            planned = graphs.plan_encoder(planned, settings, target_size)
    if is_graph:
        settings, fields, bits = planned.settings, planned.fields, settings.bits
    else:
        planning = _module("quantize_plan")
        if target_size is not None:
            settings = replace(settings, bits=planning.bits_within(planned, settings, target_size))
        if settings.latency is not None:
            settings = replace(settings, bits=planning.bits_within_latency(planned, settings))
        fields = planning.plan(planned, settings)
        bits = fields["nominal_bits"]
    place = Path(output) if output else quantized_output(source, bits)
    return QuantizePlan(planned, place, settings, fields, is_graph)


def check_memory(plan: QuantizePlan, limit: float | None = None, *, spill: bool = False) -> int:
    """Return the bytes that a plan needs at most, with `spill` as `quantize` has it; raise
    `UsageError` if they exceed `limit` GB, or the machine's memory."""
    if plan.is_graph:
        return _module("onnx_workflow").check_memory(plan.checkpoint, limit, spill=spill)
    decoder = _module("families").read_config(plan.checkpoint.config)
    needed: int = _module("quantize_memory").check(decoder, plan.settings, limit, spill=spill)
    return needed


def run_quantize(
    plan: QuantizePlan, *, progress: QuantizeProgress | None = None, **how: Any
) -> "QuantizeReport":
    """Carry out a plan; `how` is `resume`, `force`, `spill` and `device` of `quantization.quantize`."""
    if plan.is_graph:
        _module("onnx_workflow").refuse_options(plan.checkpoint, **how)
        graph, force = _module("onnx_quantization"), how.get("force", False)
        return graph.quantize(plan.checkpoint, plan.output, force=force, progress=progress)
    report: QuantizeReport = _module("quantization").quantize(
        plan.checkpoint, plan.output, plan.settings, progress=progress, **how
    )
    return report


def quantize(
    source: str | Path,
    output: str | Path | None = None,
    *,
    config: str | Path | None = None,
    resume: bool = True,
    force: bool = False,
    spill: bool = False,
    device: str = "cpu",
    target_size: int | None = None,
    outputs: Sequence[str] = (),
    progress: QuantizeProgress | None = None,
    **settings: Any,
) -> "QuantizeReport":
    """Quantize a checkpoint, or an ONNX graph with `outputs` of its values, into a packed model;
    `settings` are those of `QuantizeSettings`."""
    given: dict[str, Any] = {"config": config, "target_size": target_size, "outputs": outputs}
    plan = plan_quantize(source, output, make_settings(**settings), **given)
    how: dict[str, Any] = {"resume": resume, "force": force, "spill": spill, "device": device}
    return run_quantize(plan, progress=progress, **how)


def plan_compile(
    source: str | Path,
    output: str | Path | None = None,
    *,
    target: str | None = None,
    bits: float | None = None,
    effort: str = DEFAULT_EFFORT,
    calib: str | Path | None = None,
    outputs: Sequence[str] = (),
    config: str | Path | None = None,
    force: bool = False,
    **settings: Any,
) -> CompilePlan:
    """Check everything that can be checked before the work, and return what `compile` would do.

    `settings` are those of `CompileSettings`; `calib` and `outputs` are for an ONNX file.
    """
    backends = _module("backend")
    backend = backends.load(target) if target else backends.detect()
    plan = plan_source(
        source, output, backend, bits, config, effort, calib=calib, outputs=outputs, **settings
    )
    _module("files").refuse_existing(plan.output, _module("artifact").MANIFEST, force)
    # Before torch, which tvm_ffi would otherwise take up; and a broken TVM shows before the work.
    with _module("runtime.library").without_torch():
        compiler = _module("compiler")
    if plan.quantize is not None:
        check_memory(plan.quantize)
        if plan.quantize.is_graph:
            return plan
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
    calib: str | Path | None = None,
    outputs: Sequence[str] = (),
    **settings: Any,
) -> CompilePlan:
    """Return how `source` becomes a packed model for `backend`, and where its artifact goes.

    `settings` are those of `CompileSettings`.
    """
    chosen = _module("compile_settings").CompileSettings(**settings)
    backend.launching(chosen.launches)  # refused before the work that it would waste
    if _module("packed").is_packed(source):
        if calib is not None:
            _refuse_calib(source)
        if bits is not None or config is not None or outputs:
            raise UsageError(
                f"{source} is a packed model, its bits and its config.json are fixed; leave out "
                "--bits, --config and --outputs, or give the original checkpoint."
            )
        packed = Path(source)
        place = Path(output) if output else compiled_output(packed, backend.name)
        return CompilePlan(packed, place, backend, None, False, chosen)
    wanted = make_settings(
        bits=DEFAULT_BITS if bits is None else bits,
        effort=effort,
        calibration_text=None if calib is None else str(calib),
    )
    first = plan_quantize(source, None, wanted, config=config, outputs=outputs)
    if calib is not None and not first.is_graph:
        _refuse_calib(source)
    place = Path(output) if output else compiled_output(first.output, backend.name)
    reused = first.output.exists()
    if reused:
        _check_same(first)
    return CompilePlan(first.output, place, backend, None if reused else first, reused, chosen)


def _refuse_calib(source: str | Path) -> None:
    raise UsageError(
        f"compile takes --calib for ONNX files and encoders, {source} is neither; quantize it first, "
        "with --calib."
    )


def _check_same(plan: QuantizePlan) -> None:
    """Raise `OutputError` unless the packed model at the plan's output is what it would make."""
    if plan.is_graph:
        if _module("onnx_quantization").made_by(plan.output, plan.checkpoint):
            return
    elif _module("packed").is_packed(plan.output):
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
    model: PackedModel | PackedGraph
    if _module("packed").kind(plan.packed) == "onnx":
        model = _module("onnx_packed").PackedGraph(plan.packed)
        compile_it = _module("function_compiler").compile_graph
    else:
        model = _module("packed").open_packed(plan.packed)
        compile_it = _module("compiler").compile_model
    report: CompileReport = compile_it(
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
    calib: str | Path | None = None,
    outputs: Sequence[str] = (),
    config: str | Path | None = None,
    force: bool = False,
    **settings: Any,
) -> "CompileReport":
    """Compile a packed model, or a checkpoint that is quantized first, into an artifact.

    `settings` are those of `CompileSettings`; `calib` and `outputs` are for an ONNX file.
    """
    plan = plan_compile(
        source,
        output,
        target=target,
        bits=bits,
        effort=effort,
        calib=calib,
        outputs=outputs,
        config=config,
        force=force,
        **settings,
    )
    if plan.quantize is not None:
        run_quantize(plan.quantize)
    return run_compile(plan, force=force)


def load(path: str | Path, *, threads: int | None = None) -> "TextModel | FunctionModel":
    """Load an artifact: to generate text with, `load(path).generate("Once upon a time")`; or of kind
    `function`, to call with arrays by name, `load(path)(input_image=images)`."""
    opened: Artifact = _module("artifact").Artifact(path)
    if opened.manifest["kind"] == "function":
        function: FunctionModel = _module("runtime.function").FunctionModel(opened, threads=threads)
        return function
    model: TextModel = _module("runtime.generation").TextModel(path, threads=threads)
    return model


def verify(
    path: Path, golden: Path | None = None, rpc: str | None = None
) -> tuple[dict[str, object], ShiftAddError | None]:
    """Return what is known of an artifact, and the error if it is not whole and right.

    An artifact that passes with its own golden file is marked as verified. With `rpc`, it is a board
    that runs it: HOST:PORT:KEY of a tracker.
    """
    fields: dict[str, object] = {"files_ok": False, "max_logit_error": None, "tokens_equal": None}
    try:
        artifact = _module("artifact").Artifact(path)
        artifact.check_hashes()
        fields["files_ok"] = True
        gate = _module("verification")
        if rpc is None:
            artifact.check_machine()
            result = gate.measure(path, golden)
        else:
            address = _module("tuner").BoardAddress.parse(rpc)
            ids, logits = gate.read_prompts(artifact, golden)
            found = _module("boards").run_golden(address, path, ids)
            result = gate.judge(artifact, logits, found)
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
        content = _module("files").compact_json({**artifact.manifest, "verified": True})
        temporary.write_bytes(content)
        temporary.replace(manifest)
    except OSError as error:
        raise OutputError(f"{manifest} cannot be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)
