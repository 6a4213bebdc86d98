"""From a packed model to a Relax module: the functions of a decoder.

    embed(ids (n,) int32)                                       -> x (n, hidden)
    prefill(x (n, hidden), cache of one sequence)               -> hidden states (n, hidden), normed
    logits(hidden states (n, hidden))                           -> (n, vocabulary)
    decode_b1, _b2, _b4(ids (b,) int32, cache of b sequences)   -> (b, vocabulary)
    sample(logits (b, vocabulary), the inputs of `layers.SAMPLING` in their order)   -> (b,)
    read_memory, read_memory_ahead(words)                       -> checksums (`ops/read_memory.py`)

All but the last two rows take the tuple of parameters last (`parameters.py`); n is symbolic up to `CHUNK`
rows (`LOGIT_ROWS` for logits). The cache's inputs and shapes are those of `ops/attention.py`. Knows no
target: what depends on one stands in the shapes of the parameters.
"""

from typing import Any

from tvm import relax, tirx
from tvm.ir import IRModule

from shiftadd_tvm import layers
from shiftadd_tvm.compile_settings import BATCHES
from shiftadd_tvm.ops import elementwise, read_memory
from shiftadd_tvm.packed import PackedModel
from shiftadd_tvm.parameters import Parameter

CHUNK = 256  # rows of a prefill call at most: bounds the planned memory
LOGIT_ROWS = 32


def build(
    model: PackedModel,
    found: list[Parameter],
    groups: dict[str, layers.Group],
    activations: str = "int16",
    batches: tuple[int, ...] = BATCHES,
) -> IRModule:
    """Return the Relax module of a decoder over `found` and `groups` of `parameters.py`.

    `activations` is the format of look-ups: a name of `lut.FORMATS`, or `lut_float.NAME`. There is a
    decode function for each of `batches`.
    """
    types = {p.name: relax.TensorType(p.shape, p.dtype) for p in found}
    builder = layers.Builder(types)
    graph = _DecoderGraph(builder, model, groups, activations)
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
    ) -> None:
        decoder = model.decoder
        self._b, self._decoder = b, decoder
        self._heads = layers.Heads(decoder.heads, decoder.kv_heads, decoder.head_dim)
        self._groups, self._activations = groups, activations
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
            x = b.op("add", (), elementwise.add, x, y.tensor)
            y = layers.norm(b, x, f"{block}.post_attention_layernorm", decoder.norm_epsilon)
            gate, up = self._linears(y, f"{block}.mlp.gate_proj", many)
            y = layers.gated(b, gate, up)
            (y,) = self._linears(y, f"{block}.mlp.down_proj", many)
            x = b.op("add", (), elementwise.add, x, y.tensor)
        return layers.norm(b, x, decoder.final_norm, decoder.norm_epsilon)

    def _linears(self, x: Any, leader: str, many: bool) -> list[layers.Columns]:
        return layers.linears(self._b, x, self._groups[leader], self._activations, many)
