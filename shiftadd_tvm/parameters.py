"""The ordered parameters that the functions of a decoder take, and how each is packed.

Contract 1 stores every linear by itself. Kernels read row blocks (`ops/planes.py`), and one launch
costs as much as thousands of look-ups, so linears that read one activation and agree in everything
but their numbers are stacked, one below the other, under the name of the first.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from shiftadd_tvm.bcq import BCQWeight, SeparableScales
from shiftadd_tvm.coded_tensors import CodedTensors
from shiftadd_tvm.decoder_model import Decoder, Rope
from shiftadd_tvm.layers import NUMBERS, Group, Linear
from shiftadd_tvm.ops import dense, elementwise, lut, lut_bits, lut_bits_group, lut_group, words
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.packed import PackedModel

Array = np.ndarray


@dataclass(frozen=True)
class Parameter:
    """One tensor that the library takes: its type, and how it is made from the packed model."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # of TVM
    read: Callable[[], Array]


def groups(model: CodedTensors, rows: int, activations: str) -> dict[str, Group]:
    """Return the linears that share an activation by the name of their first, for row blocks of
    `rows` and a format of look-ups (whole numbers have a fast form of grouped scales)."""
    found = {}
    together = sorted({model.group(linear) for linear in model.linears()})
    if model.stored:
        sizes = model.layout.linears()
        return {m[0]: Group((_numbers(m, sizes),), 1) for m in together}
    for members in together:
        rotation = model.weight(members[0]).rotation
        stacks = tuple(
            _linear_type(model, stack, activations) for stack in stacked(model, members, rows)
        )
        found[members[0]] = Group(stacks, 1 if rotation is None else rotation.block)
    return found


def _numbers(members: tuple[str, ...], sizes: Mapping[str, tuple[int, ...]]) -> Linear:
    """Return linears that are stored as numbers, as one matrix."""
    return Linear(members, tuple(sizes[name][0] for name in members), False, order=NUMBERS)


def stacked(model: CodedTensors, members: tuple[str, ...], rows: int) -> list[tuple[str, ...]]:
    """Return runs of `members` that one matrix can hold: separable, equal bits and terms, and each
    but the last of whole row blocks."""
    runs: list[list[str]] = []
    for name in members:
        before = model.weight(runs[-1][-1]) if runs else None
        if before is not None and _stack(before, model.weight(name), rows):
            runs[-1].append(name)
        else:
            runs.append([name])
    return [tuple(run) for run in runs]


def _stack(above: BCQWeight, below: BCQWeight, rows: int) -> bool:
    if not isinstance(above.scales, SeparableScales) or above.shape[0] % rows:
        return False
    if not isinstance(below.scales, SeparableScales):
        return False
    terms = lambda s: (s.row_terms.shape[1], s.plane_terms.shape)
    return above.bits == below.bits and terms(above.scales) == terms(below.scales)


def _linear_type(model: CodedTensors, members: tuple[str, ...], activations: str) -> Linear:
    weights = [model.weight(name) for name in members]
    scales, inputs = weights[0].scales, weights[0].shape[1]
    block = None if isinstance(scales, SeparableScales) else (scales.rows, scales.columns)
    bias = any(f"{name}.bias" in model.names() for name in members)
    whole = activations in lut.FORMATS
    form = lut_bits.FORMATS.get(activations)
    grouped = whole and block is not None and lut_group.fits(inputs, *block)
    if form is not None and block is not None:
        grouped = lut_bits_group.fits(form, *block)
    outputs = tuple(weight.shape[0] for weight in weights)
    order = form.order if form is not None and (block is None or grouped) else "bytes"
    return Linear(members, outputs, bias, block, order, grouped)


def parameters(
    model: PackedModel, groups: Mapping[str, Group], lanes: int, rows: int
) -> list[Parameter]:
    """Return every parameter, in the order in which hosts pass them, for vectors of `lanes` float32
    numbers and `groups` of row blocks of `rows`."""
    decoder = model.decoder
    found = [_frequencies(decoder, rope, name) for rope, name in rope_names(decoder).items()]
    for name in _stored_matrices(decoder):
        found += _stored(model, name, lanes)
    norms = {f"{name}.weight" for name in decoder.norm_names()}
    vectors = norms | {f"{name}.bias" for name in decoder.norm_names()}
    if decoder.position_embedding:
        vectors.add(f"{decoder.position_embedding}.weight")
    for name in model.names():
        if name in vectors:
            found.append(_copied(model, name, decoder.norm.offset if name in norms else 0.0))
    if model.stored:
        return found + [_stacked_numbers(model, s, lanes) for g in groups.values() for s in g.stacks]
    return found + of_groups(model, groups, rows)


def of_groups(model: CodedTensors, groups: Mapping[str, Group], rows: int) -> list[Parameter]:
    """Return the parameters of coded linears, in the order of their `groups`."""
    return [p for group in groups.values() for p in _group(model, group, rows)]


def _stored_matrices(decoder: Decoder) -> list[str]:
    head = [] if decoder.tied_embeddings else [decoder.head]
    return [decoder.embedding, *head, *decoder.dense()]


def rope_names(decoder: Decoder) -> dict[Rope, str]:
    """Return the names of the frequencies of each rotary embedding that a layer has."""
    found = dict.fromkeys(rope for rope in decoder.ropes if rope is not None)
    names = ["rope.frequencies", *(f"rope.frequencies.{index}" for index in range(1, len(found)))]
    return dict(zip(found, names, strict=False))


def _frequencies(decoder: Decoder, rope: Rope, name: str) -> Parameter:
    used: dict[str, object] = {}
    if rope.kind == "linear":
        used = {"factor": rope.factor}
    elif rope.kind == "factors":
        used = {"factors": rope.factors}
    elif rope.kind == "llama3":
        fields = ("factor", "low_frequency_factor", "high_frequency_factor", "original_positions")
        used = {field: getattr(rope, field) for field in fields}
    values = elementwise.rope_frequencies(rope.dims or decoder.head_dim, rope.theta, used)
    return Parameter(name, values.shape, "float32", lambda: values)


def _copied(model: PackedModel, name: str, offset: float) -> Parameter:
    """Return a vector or table in float32; `offset` is what gains have beside what is stored."""
    shape = tuple(model.raw(name).shape)
    return Parameter(name, shape, "float32", lambda: model.read(name) + np.float32(offset))


def _stored(model: PackedModel, name: str, lanes: int) -> list[Parameter]:
    weight, stored = f"{name}.weight", model.dtype(f"{name}.weight")
    known = stored in dense.RAW_DTYPES
    dtype = dense.RAW_DTYPES[stored] if known else "float32"
    outputs, inputs = model.raw(weight).shape
    shape = (dense.lane_blocks(outputs, lanes), inputs, lanes)
    source = model.raw if known else model.read
    found = [Parameter(weight, shape, dtype, lambda: dense.pack_rows(source(weight), lanes))]
    return found + ([_raw(model, f"{name}.weight_scale")] if stored == "I8" else [])


def _stacked_numbers(model: PackedModel, stack: Linear, lanes: int) -> Parameter:
    """Return the matrix of linears that are stored as numbers, one below the other."""
    dtype, outputs = dense.RAW_DTYPES[model.stored], sum(stack.outputs)
    inputs = model.layout.linears()[stack.name][1]
    whole = lambda: np.concatenate([model.raw(f"{name}.weight") for name in stack.members])
    shape = (dense.lane_blocks(outputs, lanes), inputs, lanes)
    return Parameter(f"{stack.name}.weight", shape, dtype, lambda: dense.pack_rows(whole(), lanes))


def _raw(model: PackedModel, name: str) -> Parameter:
    return Parameter(name, tuple(model.raw(name).shape), "float32", lambda: model.raw(name))


def _group(model: CodedTensors, group: Group, rows: int) -> Iterator[Parameter]:
    yield from itertools.chain.from_iterable(_matrix(model, s, rows) for s in group.stacks)
    arrays = model.weight(group.leader).arrays()
    if "column_terms" in arrays:  # columns side by side, as vectors read them
        terms = np.ascontiguousarray(arrays["column_terms"].T)
        yield Parameter(f"{group.leader}.column_terms", terms.shape, "uint8", lambda: terms)
    if "signs" in arrays:
        signs = arrays["signs"]
        yield Parameter(f"{group.leader}.signs", signs.shape, "uint8", lambda: signs)


def _matrix(model: CodedTensors, stack: Linear, rows: int) -> Iterator[Parameter]:
    """Yield what belongs to the rows of one stack, every linear's one below the other's."""
    weights = [model.weight(name) for name in stack.members]
    bits, inputs = weights[0].bits, weights[0].shape[1]
    shape = _planes_shape(stack.order, bits, sum(stack.outputs), inputs, rows)

    def planes() -> Array:
        parts = (model.weight(name).planes for name in stack.members)
        return np.concatenate([_pack(part, stack.order, rows) for part in parts])

    yield Parameter(f"{stack.name}.planes", shape, "uint32", planes)
    if stack.block is not None:
        terms, suffix = weights[0].arrays()["block_terms"], "block_terms"
        if stack.grouped:
            terms, suffix = lut_group.pack_terms(terms, rows), "group_terms"
        yield Parameter(f"{stack.name}.{suffix}", terms.shape, "uint8", lambda: terms)
    else:
        scales = [weight.arrays() for weight in weights]
        levels = np.concatenate(
            [
                np.repeat(scale["plane_terms"][None], order.row_blocks(outputs, rows), axis=0)
                for scale, outputs in zip(scales, stack.outputs, strict=True)
            ]
        )
        yield Parameter(f"{stack.name}.plane_terms", levels.shape, "uint8", lambda: levels)
        stacked_rows = np.concatenate([scale["row_terms"] for scale in scales])
        packed = order.pack_row_terms(stacked_rows, rows)
        yield Parameter(f"{stack.name}.row_terms", packed.shape, "uint8", lambda: packed)
    if stack.bias:
        members = zip(stack.members, stack.outputs, strict=True)
        bias = np.concatenate([_bias(model, *member) for member in members])
        yield Parameter(f"{stack.name}.bias", bias.shape, "float32", lambda: bias)


def _planes_shape(
    named: str, bits: int, outputs: int, inputs: int, rows: int
) -> tuple[int, ...]:
    """Return the shape of packed planes in the order of that name."""
    if named == "bytes":
        return order.shape(bits, outputs, inputs, rows)
    return words.shape(bits, outputs, inputs, named)


def _pack(planes: Array, named: str, rows: int) -> Array:
    """Return canonical planes in the packed order of that name."""
    return order.pack(planes, rows) if named == "bytes" else words.pack(planes, named)


def _bias(model: CodedTensors, name: str, outputs: int) -> Array:
    stored = f"{name}.bias"
    return model.read(stored) if stored in model.names() else np.zeros(outputs, np.float32)
