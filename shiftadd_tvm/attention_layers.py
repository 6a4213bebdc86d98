"""Attention as Relax: heads taken out of projections, normalized, turned, and the cache they go to."""

from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx

from shiftadd_tvm.decoder_model import Attention, HeadColumns, Rope
from shiftadd_tvm.layers import Builder, Columns
from shiftadd_tvm.ops import attend, attention, elementwise, heads
from shiftadd_tvm.ops.scores import Scores

Expr = Any  # TVM's classes have no static types


@dataclass(frozen=True)
class Layer:
    """What one layer's attention has of its own."""

    index: int
    window: int  # positions that it sees, 0 for all
    path: str  # of its block, by which the names of norms are found


class Cache:
    """The key/value cache inside one function: pages as inputs, updated in place layer by layer."""

    def __init__(
        self,
        b: Builder,
        kind: Attention,
        epsilon: float,
        layers: int,
        sequences: int,
        sequence: bool,
        held: str,
    ) -> None:
        """`epsilon` is that of norms of heads; `sequence`: all rows belong to one sequence (prefill);
        else row i is sequence i; `held` is the format of `ops/attention.py` that pages have."""
        pages, width = tirx.Var("pages", "int64"), tirx.Var("width", "int64")
        page, size, kv_heads = attention.PAGE, kind.head_dim, kind.kv_heads
        self._b, self._kind, self._epsilon, self._sequence = b, kind, epsilon, sequence
        self._held, rows = held, size + attention.EXPONENTS[held]
        self._keys_type = relax.TensorType((layers, pages, kv_heads, rows, page), held)
        self._values_type = relax.TensorType((layers, pages, kv_heads, page, size), held)
        self.keys = relax.Var("keys", self._keys_type)
        self.values = relax.Var("values", self._values_type)
        self.table = relax.Var("block_table", relax.TensorType((sequences, width), "int32"))
        self.length = relax.Var("length", relax.TensorType((sequences,), "int32"))

    def inputs(self) -> list[Expr]:
        """Return the function inputs that make up the cache."""
        return [self.keys, self.values, self.table, self.length]

    def positions(self, rows: Expr) -> Expr:
        """Return the positions (n,) int32 of this call's `rows` tokens."""
        kind = self._sequence
        function = self._b.tir(("positions", kind), lambda: attention.positions(kind))
        out = relax.TensorType((rows,), "int32")
        return self._b.blocks.emit(relax.call_tir(function, [self.length], out))

    def angles(self, positions: Expr, rope: Rope, name: str) -> Expr:
        """Return the rotary angles (n, 2, A) of positions (n,); `name` is that of the frequencies."""
        compute = lambda p, f: elementwise.rope_angles(p, f, rope.scale)
        frequencies = self._b.parameter(name)
        return self._b.op("rope_angles", (rope.scale,), compute, positions, frequencies)

    def _heads(
        self, parts: list[Columns], where: HeadColumns, norm: str, angles: Expr | None
    ) -> Expr:
        """Return the query or key heads (n, heads D), normalized and turned."""
        b, x, layout = self._b, parts[where.source], self._layout(parts, where)
        tensor = x.tensor
        if norm:
            epsilon, own = self._epsilon, layout
            compute = lambda v, weight: heads.head_norm(v, weight, epsilon, own)
            tensor = b.op("head_norm", (epsilon, own), compute, tensor, b.parameter(norm))
            layout = heads.Layout(layout.heads, layout.size)
        if angles is not None:
            turn = lambda v, a: heads.rope(v, a, layout)
            return b.op("rope", (layout,), turn, tensor, angles)
        if norm:
            return tensor
        return b.op("take_heads", (layout,), lambda v: heads.take_heads(v, layout), tensor)

    def _layout(self, parts: list[Columns], where: HeadColumns) -> heads.Layout:
        kind = self._kind
        count = kind.heads if where == kind.query else kind.kv_heads
        start = parts[where.source].start + where.start
        run = where.run if where.run < count else 0
        return heads.Layout(count, kind.head_dim, start, run, where.stride if run else 0)

    def attend(self, layer: Layer, parts: list[Columns], angles: Expr | None, rows: Expr) -> Expr:
        """Append the keys and values among the outputs of the input projections to a layer; return
        the attention (n, heads D) of the queries. `angles` turn queries and keys."""
        b, kind, sequence, held = self._b, self._kind, self._sequence, self._held
        named = lambda norm: norm and f"{layer.path}.{norm}.weight"
        queries = self._heads(parts, kind.query, named(kind.query_norm), angles)
        new_keys = self._heads(parts, kind.key, named(kind.key_norm), angles)
        index = tirx.const(layer.index, "int64")
        self._append(new_keys, parts[kind.value.source], self._layout(parts, kind.value), index)
        rules = Scores(kind.scale, layer.window, kind.cap, kind.alibi)
        sizes = (kind.heads, kind.kv_heads, kind.head_dim)
        make = lambda: attend.attend(*sizes, sequence, rules, held)
        function = b.tir(("attend", sequence, rules), make)
        out = relax.TensorType((rows, kind.heads * kind.head_dim), "float32")
        operands = [queries, self.keys, self.values, self.table, self.length, index]
        return b.blocks.emit(relax.call_tir(function, operands, out))

    def _append(self, new_keys: Expr, values: Columns, layout: heads.Layout, index: Expr) -> None:
        b, sequence, width = self._b, self._sequence, int(values.tensor.ty.shape.values[1])
        append = b.tir(
            ("append", sequence, layout, width),
            lambda: attention.append(layout, sequence, width, self._held),
        )
        written = b.blocks.emit(
            relax.call_tir_inplace(
                append,
                [self.keys, self.values, new_keys, values.tensor, self.table, self.length, index],
                inplace_indices=[0, 1],
                out_ty=[self._keys_type, self._values_type],
            )
        )
        self.keys = b.blocks.emit(relax.TupleGetItem(written, 0))
        self.values = b.blocks.emit(relax.TupleGetItem(written, 1))
