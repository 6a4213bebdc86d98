"""What a report shows of a packed model or an artifact, gathered from its files."""

import math
from pathlib import Path

from shiftadd_tvm import quantization_report, report_artifact, report_data
from shiftadd_tvm.artifact import is_artifact
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.lookup_counts import Matrix, Reader, Terms
from shiftadd_tvm.onnx_packed import KIND, PackedGraph
from shiftadd_tvm.operation_counts import Rest
from shiftadd_tvm.packed import PackedModel, is_packed, kind, open_packed
from shiftadd_tvm.quantization_report import Measured
from shiftadd_tvm.report_data import Layer, Report, Work
from shiftadd_tvm.tensorfile import DTYPES

NO_FILE = (
    "Errors and sensitivity are not shown: this packed model has no quantization_report.json, so it "
    "was made by an earlier version or the file was removed. Quantize the checkpoint again to have them."
)
NO_OUTPUT_ERROR = (
    "Output errors are not shown: the method that made this model used no calibration data."
)
NO_LOSS = (
    "Sensitivity and shares of the loss are not shown: the bits of this model's linears were given, "
    "not chosen by their expected loss."
)


def gather(path: str | Path) -> Report:
    """Return the report on the packed model or artifact at `path`; raises `BadFileError` else."""
    place = Path(path)
    if is_artifact(place):
        return report_artifact.gather(place)
    if is_packed(place):
        return _packed(PackedGraph(place) if kind(place) == KIND else open_packed(place))
    found = "a folder without our files" if place.is_dir() else "no folder"
    raise BadFileError(
        f"{path} is {found}, expected a packed model or an artifact; name what shiftadd-tvm quantize "
        "or compile wrote."
    )


def _packed(model: PackedModel | PackedGraph) -> Report:
    measured = quantization_report.read(model.path, model.linears())
    layers = _layers(model, measured)
    return Report(
        kind="packed",
        title=model.path.resolve().name,
        facts=_facts(model),
        layers=layers,
        nominal_bits=float(model.layout.nominal_bits()),
        effective_bits=model.effective_bits(),
        linear_bytes=model.linear_bytes(),
        work=_work(model) if isinstance(model, PackedModel) else None,
        missing=[
            *_missing(measured, layers),
            *([] if isinstance(model, PackedModel) else [report_data.NO_TOKENS]),
        ],
    )


def _layers(model: PackedModel | PackedGraph, measured: Measured | None) -> list[Layer]:
    sizes = dict.fromkeys(model.linears(), 0)
    for name, shape in model.layout.coded_shapes().items():
        sizes[name.rpartition(".")[0]] += math.prod(shape)
    found = measured or Measured({}, {})
    return [
        Layer(
            name,
            (shape[0], shape[1]),
            model.layout.bits[name],
            sizes[name],
            found.errors.get(name, {}).get("weight_error"),
            found.errors.get(name, {}).get("output_error"),
            found.losses.get(name, {}),
        )
        for name, shape in model.layout.linears().items()
    ]


def _missing(measured: Measured | None, layers: list[Layer]) -> list[str]:
    if measured is None:
        return [NO_FILE]
    found = []
    if all(layer.output_error is None for layer in layers):
        found.append(NO_OUTPUT_ERROR)
    if all(layer.loss is None for layer in layers):
        found.append(NO_LOSS)
    return found


def _facts(model: PackedModel | PackedGraph) -> dict[str, str]:
    stored = model.quantization
    method, calibration = stored.get("method"), stored.get("calibration")
    rotation, scales = stored.get("rotation"), stored.get("scales")
    made = method if isinstance(method, dict) else {}
    data = calibration if isinstance(calibration, dict) else {}
    turned = rotation if isinstance(rotation, dict) else {}
    blocks = scales if isinstance(scales, dict) else {}
    described = str(data.get("data", "none: the method needs no data"))
    digest = f", sha256 {str(data['sha256'])[:12]}…" if "sha256" in data else ""
    own = f"; {data['own_tokens']:,} tokens by the model" if "own_tokens" in data else ""
    seed = data.get("seed", turned.get("seed", "none"))
    facts = {
        "Model": model.path.resolve().name,
        "Family": str(model.config["model_type"]),
        **_parts(model),
        "Method": str(made.get("name", "not stated")),
        "Effort": str(made.get("effort", "does not apply")),
        "Bits of linears": _bits(model, bool(made.get("mixed"))),
        "Calibration data": described + digest + own,
        "Calibration tokens": f"{data['tokens']:,}" if type(data.get("tokens")) is int else "none",
        "Seed": str(seed),
        "Scales": str(blocks.get("format")),
        "Rotation": f"Hadamard, up to {turned['max_block']}" if turned else "none",
    }
    return facts


def _parts(model: PackedModel | PackedGraph) -> dict[str, str]:
    """Return what a model is made of."""
    if isinstance(model, PackedGraph):
        return {"Linears": str(len(model.linears()))}
    wide = model.layout.embedding_bits != 8
    return {
        "Blocks, linears": f"{model.decoder.layers}, {len(model.linears())}",
        "Embedding and head": "as in the checkpoint" if wide else "8 bits",
    }


def _bits(model: PackedModel | PackedGraph, chosen: bool) -> str:
    found = set(model.layout.bits.values())
    if len(found) == 1:
        return f"{found.pop()} in all"
    return f"{min(found)} to {max(found)}, {'chosen one by one' if chosen else 'given'}"


def _work(model: PackedModel) -> Work:
    layout, decoder = model.layout, model.decoder
    plain = layout.plain_shapes()
    block = None if layout.scale_format == "separable" else layout.block_shape
    terms = Terms(**{name.removesuffix("_terms"): count for name, count in layout.terms.items()})
    readers = []
    for group in decoder.input_groups():
        shapes = [layout.linears()[name] for name in group]
        matrices = tuple(
            Matrix(
                shape[0],
                layout.bits[name],
                terms,
                f"{name}.bias" in plain,
                block(shape) if block else None,
            )
            for name, shape in zip(group, shapes, strict=True)
        )
        inputs = shapes[0][1]
        readers.append(Reader(inputs, layout.rotation_block(inputs), matrices))
    norms = tuple(decoder.norm_widths())
    rest = Rest(
        decoder.layers,
        decoder.hidden,
        decoder.intermediate * len(decoder.mlps),
        decoder.vocabulary,
        decoder.heads,
        decoder.kv_heads,
        decoder.head_dim,
        norms,
        layout.embedding_bits == 8,
    )
    # an embedding that is not the head too is read by one row: next to nothing; so are positions
    once = {f"{decoder.position_embedding}.weight"}
    if not decoder.tied_embeddings:
        once.add(f"{decoder.embedding}.weight")
    read = {name: shape for name, shape in plain.items() if name not in once}
    stored = sum(math.prod(s) * DTYPES[model.dtype(name)].itemsize for name, s in read.items())
    weights = layout.linear_weights() + sum(map(math.prod, read.values()))
    nbytes = layout.linear_bytes() + stored
    return report_data.work(readers, rest, decoder.positions, nbytes, 2 * weights)
