"""What a report shows of an artifact: what its manifest says of the matrices that kernels read.

An artifact has no errors in it, and its matrices are those of the kernels: linears of one input may
lie one below the other, under the first one's name, and rows are padded to whole row blocks.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shiftadd_tvm import report_data
from shiftadd_tvm.artifact import PARAMETERS, Artifact, TensorSpec
from shiftadd_tvm.bcq import MAX_BITS, rotation_block
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.lookup_counts import Matrix, Reader, Terms
from shiftadd_tvm.operation_counts import Rest
from shiftadd_tvm.report_data import Layer, Report, Work

NO_ERRORS = (
    "Errors, sensitivity, method and calibration are not shown: an artifact does not carry them. "
    "Report the packed model that it was compiled from."
)
STACKED = (
    "Matrices are those that the kernels read: linears that share an input may be stored as one, under "
    "the name of the first, and rows are padded to whole blocks."
)
NO_COUNTS = (
    "Operations are not counted: {why}. Report the packed model that this was compiled from."
)
SIZES = ("layers", "hidden", "intermediate", "vocabulary", "heads", "kv_heads", "head_dim")
_ORDER = re.compile(r"bytes-rows(\d+)")
_SHARED = ("column_terms", "signs")  # stored once, behind the matrices that share an input


@dataclass(frozen=True)
class _Stored:
    """The parameters of one matrix by suffix, and of what it shares with others."""

    name: str
    tensors: dict[str, TensorSpec]

    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.tensors.values())

    def size(self, suffix: str, axis: int) -> int:
        """Return one size of a tensor, 0 where there is none."""
        spec = self.tensors.get(suffix)
        return int(spec.shape[axis]) if spec and len(spec.shape) > axis else 0

    def columns(self) -> tuple[int, int]:
        """Return the terms and the columns of s, 0 where there is none; once columns came first."""
        terms, columns = sorted(self.size("column_terms", axis) for axis in range(2))
        return terms, columns


def gather(path: Path) -> Report:
    """Return the report on the artifact at `path`; raises `BadFileError` for a damaged one."""
    artifact = Artifact(path)
    order = _ORDER.fullmatch(str(artifact.manifest.get("packed_order")))
    groups = list(_groups(artifact))
    quantization = artifact.section("quantization")
    work, why = None, "its packed order is of another version"
    missing = [NO_ERRORS, STACKED] if order else [NO_ERRORS]
    if _is_function(artifact):
        missing.append(report_data.NO_TOKENS)
    else:
        if order:
            work, why = _work(artifact, groups)
        missing += [] if work else [NO_COUNTS.format(why=why)]
    return Report(
        kind="artifact",
        title=path.resolve().name,
        facts=_facts(artifact),
        layers=[_layer(artifact, stored) for group in groups for stored in group] if order else [],
        nominal_bits=_number(path, quantization, "bits"),
        effective_bits=_number(path, quantization, "effective_bits"),
        linear_bytes=int(_number(path, quantization, "linear_bytes")),
        work=work,
        missing=missing,
    )


def _is_function(artifact: Artifact) -> bool:
    return artifact.manifest["kind"] == "function"


def _number(path: Path, section: Mapping[str, object], key: str) -> float:
    value = section.get(key)
    if type(value) not in (int, float) or not 0 < float(str(value)) < math.inf:
        raise BadFileError(
            f"{path} is not a valid artifact: quantization.{key} is {str(value)[:40]}, expected a "
            "positive number; compile it again."
        )
    return float(str(value))


def _groups(artifact: Artifact) -> Iterator[list[_Stored]]:
    """Yield the matrices that read one activation, what they share behind the last of them."""
    group: list[_Stored] = []
    shared = False
    for spec in artifact.parameters:
        name, _, suffix = spec.name.rpartition(".")
        if suffix == "planes":
            if shared:
                yield group
                group, shared = [], False
            group.append(_Stored(name, {}))
        shared = shared or suffix in _SHARED
        owner = next((stored for stored in group if stored.name == name), None)
        if owner is not None:
            owner.tensors[suffix] = spec
    if group:
        yield group


def _layer(artifact: Artifact, stored: _Stored) -> Layer:
    blocks, bits, steps, lanes = (stored.size("planes", axis) for axis in range(4))
    inputs = stored.columns()[1] or steps * 8
    layer = Layer(stored.name, (blocks * lanes * 4, inputs), bits, stored.nbytes())
    sized = blocks * steps * lanes > 0 and 1 <= bits <= MAX_BITS and inputs <= steps * 8
    if not sized or layer.nbytes > (artifact.path / PARAMETERS).stat().st_size:
        raise BadFileError(
            f"{artifact.path} is not a valid artifact: {stored.name}.planes is not of row blocks, "
            f"1 to {MAX_BITS} planes, steps and words; compile it again."
        )
    most = len(artifact.parameters)  # a function does not say how many blocks it has
    limit = most if _is_function(artifact) else min(artifact.number("model", "layers"), most)
    if layer.block >= limit:
        raise BadFileError(
            f"{artifact.path} is not a valid artifact: it has {limit} blocks and a matrix "
            f"{stored.name}; compile it again."
        )
    return layer


def _facts(artifact: Artifact) -> dict[str, str]:
    manifest, target, model = (
        artifact.manifest,
        artifact.section("target"),
        artifact.section("model"),
    )
    kernels, producer = artifact.section("kernels"), artifact.section("producer")
    join = lambda pairs: ", ".join(f"{value} {key}" for key, value in pairs.items())
    if _is_function(artifact):
        sizes = {"Functions": ", ".join(sorted(artifact.section("functions")))}
    else:
        context = artifact.number("limits", "context")
        sizes = {"Blocks": str(model.get("layers")), "Context": f"{context:,} tokens"}
    return {
        "Model": artifact.path.resolve().name,
        "Family": str(model.get("type")),
        **sizes,
        "Target": str(target.get("preset")),
        "Activations of look-ups": artifact.activations(),
        "Kernels": join(kernels),
        "Verified": "yes" if manifest.get("verified") is True else "no",
        "Made by": ", ".join(f"{key} {value}" for key, value in producer.items()),
    }


def _work(artifact: Artifact, groups: list[list[_Stored]]) -> tuple[Work | None, str]:
    """Return what a token costs, or why that cannot be told."""
    model = artifact.section("model")
    if not all(type(model.get(key)) is int for key in SIZES):
        return None, "its manifest lacks the model's sizes"
    if not all("column_terms" in group[0].tensors for group in groups):
        return None, "its scales are not separable"
    whole = artifact.activations() != "float32"
    readers = [_reader(artifact, group, whole) for group in groups]
    plain = {spec.name: spec for spec in artifact.parameters}
    norms = tuple(
        math.prod(map(int, spec.shape))
        for name, spec in plain.items()
        if name.endswith("norm.weight")
    )
    scaled = any(name.endswith(".weight_scale") for name in plain)
    sizes = {key: artifact.number("model", key) for key in SIZES}
    rest = Rest(norms=norms, scaled=scaled, **sizes)
    once = artifact.manifest.get("looked_up")
    read = [
        spec for spec in artifact.parameters if not (isinstance(once, list) and spec.name in once)
    ]
    weights = sum(m.outputs * reader.inputs for reader in readers for m in reader.matrices)
    dense = sum(math.prod(map(int, s.shape)) for s in read if s.name.endswith(".weight"))
    nbytes = sum(spec.nbytes for spec in read)
    context = artifact.number("limits", "context")
    return report_data.work(readers, rest, context, nbytes, 2 * (weights + dense)), ""


def _reader(artifact: Artifact, group: list[_Stored], whole: bool) -> Reader:
    columns = group[0].columns()[0]
    layers = [_layer(artifact, stored) for stored in group]
    inputs = layers[0].shape[1]
    matrices = tuple(
        Matrix(
            layer.shape[0],
            layer.bits,
            Terms(stored.size("row_terms", 0), columns, stored.size("plane_terms", 2)),
            "bias" in stored.tensors,
        )
        for stored, layer in zip(group, layers, strict=True)
    )
    rotated = "signs" in group[0].tensors
    rotation = _rotation(artifact.section("quantization"), inputs, rotated)
    return Reader(inputs, rotation, matrices, whole)


def _rotation(quantization: Mapping[str, object], inputs: int, rotated: bool) -> int:
    """Return the rotation's block, 1 for none."""
    rotation = quantization.get("rotation")
    limit = rotation.get("max_block") if isinstance(rotation, dict) else None
    if not rotated or type(limit) is not int:
        return 1
    return rotation_block(inputs, limit)
