"""Where the rooms meet for graphs, which are ONNX files or encoders: a plan that TVM's importer has
agreed to."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftadd_tvm.errors import UsageError

if TYPE_CHECKING:
    from shiftadd_tvm.checkpoint_base import Checkpoint
    from shiftadd_tvm.onnx_quantization import GraphPlan
    from shiftadd_tvm.settings import QuantizeSettings

SUFFIX = ".onnx"
COPIES = 6  # of the file that quantizing holds at most: the graph thrice, weights, codes
LIBRARIES = 800_000_000  # bytes of what is imported


def _module(name: str) -> Any:
    return importlib.import_module(f"shiftadd_tvm.{name}")


def is_graph(source: str | Path, outputs: Sequence[str] = ()) -> bool:
    """Tell whether `source` is an ONNX file; `UsageError` for `outputs` of anything else."""
    found = Path(source).suffix == SUFFIX and Path(source).is_file()
    if outputs and not found:
        raise UsageError(f"--outputs names values of an ONNX graph, and {source} is none; leave it out.")
    return found


def plan(
    source: str | Path,
    settings: "QuantizeSettings",
    outputs: Sequence[str] = (),
    config: str | Path | None = None,
    target_size: int | None = None,
) -> "GraphPlan":
    """Return what `quantize` would do with an ONNX file, after everything that can be checked.

    Without examples (`--calib`) the method is the data-free one. Raises `UnsupportedError` that names
    all operators which TVM does not import.
    """
    given = {"--config": config, "--target-size": target_size, **_asked(settings)}
    _refuse(given, f"{source} is an ONNX graph")
    path = Path(source)
    importer = _importer()
    model = _module("onnx_file").read(path, outputs)
    importer.check_operators(model, path)
    found: GraphPlan = _module("onnx_quantization").plan(path, model, _suited(settings), outputs)
    importer.imported(found.prepared.model, path)
    return found


def plan_encoder(
    checkpoint: "Checkpoint", settings: "QuantizeSettings", target_size: int | None = None
) -> "GraphPlan":
    """Return what `quantize` would do with the checkpoint of an encoder; methods as for `plan`."""
    given = {"--target-size": target_size, **_asked(settings)}
    _refuse(given, f"{checkpoint.path} is an encoder")
    importer = _importer()
    found: GraphPlan = _module("encoder_plan").plan(checkpoint, _suited(settings))
    importer.imported(found.prepared.model, checkpoint.path)
    return found


def _asked(settings: "QuantizeSettings") -> dict[str, object]:
    """Return the options behind settings that only language models have, None where nobody asked."""
    return {"--target-latency": settings.latency, "--own-text": settings.own_text or None}


def _refuse(options: Mapping[str, object], what: str) -> None:
    """Raise `UsageError` for the first option that was given."""
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"{option} is for language models, and {what}; leave it out.")


def _importer() -> Any:
    # Before torch, which tvm_ffi would otherwise take up; and a broken TVM shows before the work.
    with _module("runtime.library").without_torch():
        return _module("function_graph")


def _suited(settings: "QuantizeSettings") -> "QuantizeSettings":
    """Return the settings with the data-free method where there are no examples."""
    if settings.calibrated and settings.calibration_text is None:
        return dataclasses.replace(settings, bits=_whole(settings.bits), method="alternating")
    return settings


def _whole(bits: float) -> float:
    if bits % 1:
        raise UsageError(
            f"--bits is {bits:g}, expected 1, 2, 3 or 4: the bits of a graph's linears are not chosen "
            "one by one."
        )
    return bits


# what `quantization.quantize` has beside a graph's own, and what it is where nobody asks
_OF_LANGUAGE_MODELS = {"spill": False, "device": "cpu"}


def refuse_options(graph: "GraphPlan", **how: object) -> None:
    """Raise `UsageError` where blocks would be handled one by one: a graph runs as a whole."""
    for name, unasked in _OF_LANGUAGE_MODELS.items():
        if how.get(name, unasked) != unasked:
            raise UsageError(
                f"--{name} is for language models, and {graph.path} is a graph or an encoder, which "
                "runs as a whole; leave it out."
            )


def peak(nbytes: int) -> int:
    """Return the bytes of memory that quantizing a graph or an encoder of so many bytes needs at most."""
    return LIBRARIES + COPIES * nbytes


def check_memory(graph: "GraphPlan", limit: float | None, *, spill: bool = False) -> int:
    """Return the bytes that a plan needs at most; raise `UsageError` if they exceed `limit` GB, or for
    `spill`."""
    refuse_options(graph, spill=spill)
    needed = peak(graph.source.nbytes)
    if limit is not None and needed > limit * 1e9:
        raise UsageError(
            f"--max-memory is {limit:g} GB, quantizing {graph.path} needs about {needed / 1e9:.1f} GB; "
            "allow more."
        )
    return needed
