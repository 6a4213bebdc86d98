"""From a packed model to a Relax module: the functions of a decoder.

    embed(ids (n,) int32)                                       -> x (n, hidden)
    prefill(x (n, hidden), cache of one sequence)               -> hidden states (n, hidden), normed
    logits(hidden states (n, hidden))                           -> (n, vocabulary)
    decode_b1, _b2, _b4(ids (b,) int32, cache of b sequences)   -> (b, vocabulary)
    sample(logits (b, vocabulary), the inputs of `layers.SAMPLING` in their order)   -> (b,)
    read_memory, read_memory_ahead(words)                       -> checksums (`ops/read_memory.py`)

All but the last two rows take the tuple of parameters last (`parameters.py`); n is symbolic up to `chunk`
rows (`LOGIT_ROWS` for logits). The cache's inputs and shapes are those of `ops/attention.py`. Knows no
target: what depends on one stands in the shapes of the parameters.
"""

from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx
from tvm.ir import IRModule

from shiftadd_tvm import layers
from shiftadd_tvm.attention_layers import Cache, Layer
from shiftadd_tvm.compile_settings import BATCHES
from shiftadd_tvm.decoder_model import Mlp, Rope
from shiftadd_tvm.ops import read_memory
from shiftadd_tvm.packed import PackedModel
from shiftadd_tvm.parameters import Parameter, rope_names

CHUNK = 256  # rows of a prefill call at most, on processors: bounds the planned memory
GPU_CHUNK = 2048  # a GPU is filled by more, and reads all weights again for each call
LOGIT_ROWS = 32


def chunk(device: str) -> int:
    """Return how many rows one call of prefill takes at most, where a GPU computes or none ("")."""
    return GPU_CHUNK if device else CHUNK


def build(
    model: PackedModel,
    found: list[Parameter],
    groups: dict[str, layers.Group],
    activations: str = "int16",
    batches: tuple[int, ...] = BATCHES,
    cache: str = "float32",
    rows: int = CHUNK,
    together: bool = False,
) -> IRModule:
    """Return the Relax module of a decoder over `found` and `groups` of `parameters.py`.

    `activations` is the format of look-ups: a name of `lut.FORMATS`, or `lut_float.NAME`. There is a
    decode function for each of `batches`. `cache` is the format of keys and values, `rows` how many
    prefill takes at most. `together` spares launches (`attention_layers.Cache`).
    """
    types = {p.name: relax.TensorType(p.shape, p.dtype) for p in found}
    builder = layers.Builder(types)
    graph = _DecoderGraph(builder, model, groups, activations, cache, rows, together)
    graph.embed()
    graph.prefill()
    graph.logits()
    for batch in batches:
        graph.decode(batch)
    graph.sample(max(batches))
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

    def __init__(
        self,
        b: layers.Builder,
        model: PackedModel,
        groups: dict[str, layers.Group],
        activations: str,
        cache: str,
        rows: int,
        together: bool,
    ) -> None:
        decoder = model.decoder
        self._b, self._decoder = b, decoder
        self._groups, self._activations, self._held = groups, activations, cache
        self._rows, self._together = rows, together
        self._scaled = model.dtype(f"{decoder.embedding}.weight") == "I8"
        self._head = decoder.embedding if decoder.tied_embeddings else decoder.head

    def embed(self) -> None:
        n = tirx.Var("n", "int64")
        ids = relax.Var("ids", relax.TensorType((n,), "int32"))
        with self._b.function("embed", [ids], self._rows) as result:
            result(self._embedded(ids, many=True))

    def prefill(self) -> None:
        n = tirx.Var("n", "int64")
        x = relax.Var("x", relax.TensorType((n, self._decoder.hidden), "float32"))
        cache = self._cache(1, sequence=True)
        with self._b.function("prefill", [x, *cache.inputs()], self._rows) as result:
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
            x = self._blocks(self._embedded(ids, many=False), cache, batch, many=False)
            result(self._logits(x, many=False))

    def sample(self, rows: int) -> None:
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
        with self._b.function("sample", operands, rows, parameters=False) as result:
            result(layers.sampled(self._b, logits, inputs, n, vocabulary))

    def _cache(self, sequences: int, sequence: bool) -> Cache:
        kind, epsilon = self._decoder.attention, self._decoder.norm.epsilon
        layers, held = self._decoder.layers, self._held
        own = (sequences, sequence, held, self._together)
        return Cache(self._b, kind, epsilon, layers, *own)

    def _embedded(self, ids: Any, many: bool) -> Any:
        b, decoder = self._b, self._decoder
        x = layers.embedding(b, ids, decoder.embedding, decoder.width, self._scaled)
        x = layers.scaled(b, x, decoder.embedding_scale)
        if decoder.project_in:
            x = layers.stored(b, x, decoder.project_in, decoder.hidden, many)
        return self._norm(x, decoder.embedding_norm)

    def _logits(self, x: Any, many: bool) -> Any:
        b, decoder = self._b, self._decoder
        if decoder.project_out:
            x = layers.stored(b, x, decoder.project_out, decoder.width, many)
        y = layers.head(b, x, self._head, decoder.vocabulary, self._scaled, many)
        return layers.soft_capped(b, y, decoder.logit_cap)

    def _norm(self, x: Any, name: str) -> Any:
        return layers.norm(self._b, x, name, self._decoder.norm) if name else x

    def _blocks(self, x: Any, cache: Cache, rows: Any, many: bool) -> Any:
        decoder = self._decoder
        run = _Pass(cache, rows, many, {}, None)
        names = rope_names(decoder)
        if decoder.position_embedding or names:
            run.positions = cache.positions(rows)
        if decoder.position_embedding:
            offset = decoder.position_offset
            x = layers.positioned(self._b, x, run.positions, decoder.position_embedding, offset)
        for rope, name in names.items():
            run.angles[rope] = cache.angles(run.positions, rope, name)
        for layer in range(decoder.layers):
            x = self._block(x, layer, run)
        return self._norm(x, decoder.final_norm)

    def _block(self, x: Any, layer: int, run: "_Pass") -> Any:
        decoder, block = self._decoder, self._decoder.blocks()[layer]
        attention, mlp = decoder.attention_norms, decoder.mlp_norms
        path = lambda name: name and f"{block}.{name}"
        normed = self._norm(x, path(attention.before))
        y = self._norm(self._attended(normed, layer, run), path(attention.branch))
        if decoder.parallel:
            same = mlp.before == attention.before
            z = normed if same else self._norm(x, path(mlp.before))
            z = self._norm(self._branch(z, block, run.many), path(mlp.branch))
            return layers.add(self._b, layers.add(self._b, z, y), x)
        x = self._norm(layers.add(self._b, x, y), path(attention.after))
        z = self._branch(self._norm(x, path(mlp.before)), block, run.many)
        z = self._norm(z, path(mlp.branch))
        return self._norm(layers.add(self._b, x, z), path(mlp.after))

    def _attended(self, x: Any, layer: int, run: "_Pass") -> Any:
        decoder, block = self._decoder, self._decoder.blocks()[layer]
        kind, rope = decoder.attention, decoder.rope(layer)
        parts = self._linears(x, f"{block}.{kind.inputs[0].path}", run.many)
        own = Layer(layer, decoder.window(layer), block)
        y = run.cache.attend(own, parts, run.angles[rope] if rope else None, run.rows)
        (y,) = self._linears(y, f"{block}.{kind.output.path}", run.many)
        return y.tensor

    def _branch(self, x: Any, block: str, many: bool) -> Any:
        """Return what the MLP of a block makes of x, or all of its experts."""
        b, kind = self._b, self._decoder.experts
        outputs = [self._mlp(x, block, mlp, many) for mlp in self._decoder.mlps]
        if kind is None:
            return outputs[0]
        scores = layers.stored(b, x, f"{block}.{kind.module}.{kind.router}", kind.count, many)
        return layers.mixed(b, layers.routed(b, scores, kind.chosen), outputs)

    def _mlp(self, x: Any, block: str, mlp: Mlp, many: bool) -> Any:
        parts = self._linears(x, f"{block}.{mlp.inputs[0].path}", many)
        if len(parts) == 1 and mlp.gated:  # gate and up are one projection
            whole, size = parts[0], mlp.intermediate
            parts = [layers.Columns(whole.tensor, whole.start + i * size, size) for i in range(2)]
        if mlp.gated:
            y = layers.gated(self._b, mlp.activation, *parts)
        else:
            y = layers.activated(self._b, mlp.activation, *parts)
        (y,) = self._linears(y, f"{block}.{mlp.output.path}", many)
        return y.tensor

    def _linears(self, x: Any, leader: str, many: bool) -> list[layers.Columns]:
        return layers.linears(self._b, x, self._groups[leader], self._activations, many)


@dataclass
class _Pass:
    """What the blocks of one function share."""

    cache: Cache
    rows: Any
    many: bool
    angles: dict[Rope, Any]
    positions: Any
