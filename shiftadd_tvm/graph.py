"""From a packed model to a Relax module and the ordered parameters that its functions take.

    embed(ids (n,) int32)                                       -> x (n, hidden)
    prefill(x (n, hidden), cache of one sequence)               -> hidden states (n, hidden), normed
    logits(hidden states (n, hidden))                           -> (n, vocabulary)
    decode_b1, _b2, _b4(ids (b,) int32, cache of b sequences)   -> (b, vocabulary)
    sample(logits (b, vocabulary), the inputs of `layers.SAMPLING` in their order)   -> (b,)
    read_memory, read_memory_ahead(words)                       -> checksums (`ops/read_memory.py`)

All but the last two rows take the tuple of parameters last; n is symbolic up to `CHUNK` rows
(`LOGIT_ROWS` for logits). The cache's inputs and shapes are those of `ops/attention.py`. Knows no
target: a lane count comes in, and decides the packed order of every parameter.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import IRModule

from shiftadd_tvm import layers
from shiftadd_tvm.bcq import BCQWeight, SeparableScales
from shiftadd_tvm.families import Decoder
from shiftadd_tvm.ops import dense, elementwise, lut, read_memory
from shiftadd_tvm.packed import PackedModel

CHUNK = 256  # rows of a prefill call at most: bounds the planned memory
LOGIT_ROWS = 32
BATCHES = (1, 2, 4)

Array = np.ndarray


@dataclass(frozen=True)
class Parameter:
    """One tensor that the library takes: its type, and how it is made from the packed model."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # of TVM
    read: Callable[[], Array]


def parameters(model: PackedModel, lanes: int) -> list[Parameter]:
    """Return every parameter, in the order in which hosts pass them."""
    decoder = model.decoder
    found = [_frequencies(decoder)]
    for name in _stored_matrices(decoder):
        found += _stored(model, name, lanes)
    for name in model.names():
        if name.endswith("norm.weight"):
            found.append(_copied(model, name))
    for linear in model.linears():
        found += _linear(model, linear, lanes)
    return found


def _stored_matrices(decoder: Decoder) -> list[str]:
    return [decoder.embedding] if decoder.tied_embeddings else [decoder.embedding, decoder.head]


def _frequencies(decoder: Decoder) -> Parameter:
    scaling = asdict(decoder.rope)
    theta, kind = scaling.pop("theta"), scaling.pop("kind")
    used = {"default": {}, "linear": {"factor": scaling["factor"]}, "llama3": scaling}[kind]
    values = elementwise.rope_frequencies(decoder.head_dim, theta, used)
    return Parameter("rope.frequencies", values.shape, "float32", lambda: values)


def _copied(model: PackedModel, name: str) -> Parameter:
    shape = tuple(model.raw(name).shape)
    return Parameter(name, shape, "float32", lambda: model.read(name))


def _stored(model: PackedModel, name: str, lanes: int) -> list[Parameter]:
    weight, stored = f"{name}.weight", model.dtype(f"{name}.weight")
    known = stored in dense.RAW_DTYPES
    dtype = dense.RAW_DTYPES[stored] if known else "float32"
    outputs, inputs = model.raw(weight).shape
    shape = (lut.lane_blocks(outputs, lanes), inputs, lanes)
    source = model.raw if known else model.read
    found = [Parameter(weight, shape, dtype, lambda: dense.pack_rows(source(weight), lanes))]
    return found + ([_raw(model, f"{name}.weight_scale")] if stored == "I8" else [])


def _raw(model: PackedModel, name: str) -> Parameter:
    return Parameter(name, tuple(model.raw(name).shape), "float32", lambda: model.raw(name))


def _linear(model: PackedModel, name: str, lanes: int) -> list[Parameter]:
    weight = model.weight(name)
    outputs, inputs = weight.shape
    blocks = lut.lane_blocks(outputs, lanes)
    planes = (blocks, lut.padded_inputs(inputs) // lut.WORD, weight.bits, lanes)
    pack = lambda: lut.pack_planes(model.weight(name).planes, lanes)
    found = [Parameter(f"{name}.planes", planes, "uint32", pack)]
    leads = model.group(name)[0] == name
    arrays = {k: v for k, v in weight.arrays().items() if k != "planes"}
    for suffix, array in arrays.items():
        if suffix == "row_terms":
            pack_rows = lambda a=array: lut.pack_row_terms(a, lanes)
            shape = (array.shape[1], blocks * lanes)
            found.append(Parameter(f"{name}.{suffix}", shape, "uint8", pack_rows))
        elif leads or suffix not in ("column_terms", "signs"):
            same = lambda a=array: a
            found.append(Parameter(f"{name}.{suffix}", array.shape, "uint8", same))
    bias = f"{name}.bias"
    return found + ([_copied(model, bias)] if bias in model.names() else [])


def build(model: PackedModel, found: list[Parameter]) -> IRModule:
    """Return the Relax module of a decoder over `found`, the result of `parameters`."""
    types = {p.name: relax.TensorType(p.shape, p.dtype) for p in found}
    builder = layers.Builder(types)
    graph = _DecoderGraph(builder, model)
    graph.embed()
    graph.prefill()
    graph.logits()
    for batch in BATCHES:
        graph.decode(batch)
    graph.sample()
    add_read_memory(builder)
    return builder.blocks.finalize()


def add_read_memory(b: layers.Builder) -> None:
    """Add the functions by which a bench measures memory bandwidth."""
    for op, (runs, columns) in read_memory.SHAPES.items():
        n, blocks = tirx.Var("n", "int64"), tirx.Var("blocks", "int64")
        words = relax.Var("words", relax.TensorType((n, runs, blocks, columns), "uint32"))
        with b.function(op, [words], read_memory.MOST_PARTS, parameters=False) as result:
            result(b.op(op, (), read_memory.read, words))


class _DecoderGraph:
    """The functions of one decoder."""

    def __init__(self, b: layers.Builder, model: PackedModel) -> None:
        decoder = model.decoder
        self._b, self._decoder = b, decoder
        self._heads = layers.Heads(decoder.heads, decoder.kv_heads, decoder.head_dim)
        self._groups = {
            members[0]: group(model, members)
            for members in sorted({model.group(linear) for linear in model.linears()})
        }
        self._scaled = model.dtype(f"{decoder.embedding}.weight") == "I8"
        self._head = decoder.embedding if decoder.tied_embeddings else decoder.head

    def embed(self) -> None:
        n = tirx.Var("n", "int64")
        ids = relax.Var("ids", relax.TensorType((n,), "int32"))
        with self._b.function("embed", [ids], CHUNK) as result:
            result(self._embedded(ids))

    def prefill(self) -> None:
        n = tirx.Var("n", "int64")
        x = relax.Var("x", relax.TensorType((n, self._decoder.hidden), "float32"))
        cache = self._cache(1, sequence=True)
        with self._b.function("prefill", [x, *cache.inputs()], CHUNK) as result:
            result(self._blocks(x, cache, n, many=True))

    def logits(self) -> None:
        n = tirx.Var("n", "int64")
        x = relax.Var("x", relax.TensorType((n, self._decoder.hidden), "float32"))
        with self._b.function("logits", [x], LOGIT_ROWS) as result:
            result(self._logits(x, many=True))

    def decode(self, batch: int) -> None:
        ids = relax.Var("ids", relax.TensorType((batch,), "int32"))
        cache = self._cache(batch, sequence=False)
        with self._b.function(f"decode_b{batch}", [ids, *cache.inputs()]) as result:
            x = self._blocks(self._embedded(ids), cache, batch, many=False)
            result(self._logits(x, many=False))

    def sample(self) -> None:
        # bounded like the others: sizes that the planner left open would be computed in an order
        # that differs from run to run
        n, context = tirx.Var("n", "int64"), tirx.Var("context", "int64")
        vocabulary = self._decoder.vocabulary
        logits = relax.Var("logits", relax.TensorType((n, vocabulary), "float32"))
        inputs = {
            name: relax.Var(name, relax.TensorType((n, context) if row else (n,), dtype))
            for name, (dtype, row) in layers.SAMPLING.items()
        }
        operands = [logits, *inputs.values()]
        with self._b.function("sample", operands, max(BATCHES), parameters=False) as result:
            result(layers.sampled(self._b, logits, inputs, n, vocabulary))

    def _cache(self, sequences: int, sequence: bool) -> layers.Cache:
        return layers.Cache(self._b, self._heads, self._decoder.layers, sequences, sequence)

    def _embedded(self, ids: Any) -> Any:
        decoder = self._decoder
        return layers.embedding(self._b, ids, decoder.embedding, decoder.hidden, self._scaled)

    def _logits(self, x: Any, many: bool) -> Any:
        outputs = self._decoder.vocabulary
        return layers.head(self._b, x, self._head, outputs, self._scaled, many)

    def _blocks(self, x: Any, cache: layers.Cache, rows: Any, many: bool) -> Any:
        b, decoder = self._b, self._decoder
        angles = cache.angles(rows)
        for layer, block in enumerate(decoder.blocks()):
            y = layers.norm(b, x, f"{block}.input_layernorm", decoder.norm_epsilon)
            q, k, v = self._linears(y, f"{block}.self_attn.q_proj", many)
            y = cache.attend(layer, q, k, v, angles, rows)
            (y,) = self._linears(y, f"{block}.self_attn.o_proj", many)
            x = b.op("add", (), elementwise.add, x, y)
            y = layers.norm(b, x, f"{block}.post_attention_layernorm", decoder.norm_epsilon)
            gate, up = self._linears(y, f"{block}.mlp.gate_proj", many)
            y = b.op("silu_mul", (), elementwise.silu_mul, gate, up)
            (y,) = self._linears(y, f"{block}.mlp.down_proj", many)
            x = b.op("add", (), elementwise.add, x, y)
        return layers.norm(b, x, decoder.final_norm, decoder.norm_epsilon)

    def _linears(self, x: Any, leader: str, many: bool) -> list[Any]:
        return layers.linears(self._b, x, self._groups[leader], many)


def group(model: PackedModel, members: tuple[str, ...]) -> layers.Group:
    """Return what the layers need to know of linears that share their input."""
    rotation = model.weight(members[0]).rotation
    linears = tuple(_linear_type(model, name, model.weight(name)) for name in members)
    return layers.Group(linears, 1 if rotation is None else rotation.block)


def _linear_type(model: PackedModel, name: str, weight: BCQWeight) -> layers.Linear:
    scales = weight.scales
    block = None if isinstance(scales, SeparableScales) else (scales.rows, scales.columns)
    return layers.Linear(name, weight.shape[0], f"{name}.bias" in model.names(), block)
