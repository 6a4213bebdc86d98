"""Attention as Relax: heads taken out of projections, normalized, turned, and the cache they go to."""

from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx

from shiftadd_tvm.decoder_model import Attention, HeadColumns, Rope
from shiftadd_tvm.layers import Builder, Columns
from shiftadd_tvm.ops import attend, attend_parts, attention, elementwise, heads, place
from shiftadd_tvm.ops.scores import Scores

Expr = Any  # TVM's classes have no static types


@dataclass(frozen=True)
class Layer:
    """What one layer's attention has of its own."""

    index: int
    window: int  # positions that it sees, 0 for all
    path: str  # of its block, by which the names of norms are found


@dataclass(frozen=True)
class _Heads:
    """The heads of queries, keys or values: a tensor (n, columns), and where they lie in it."""

    tensor: Expr
    layout: heads.Layout

    @property
    def width(self) -> int:
        """The columns of the tensor."""
        return int(self.tensor.ty.shape.values[1])


def _norms(kind: Attention, layer: Layer) -> list[str]:
    """Return the names of the norms of a layer's queries and keys, "" for none."""
    return [norm and f"{layer.path}.{norm}.weight" for norm in (kind.query_norm, kind.key_norm)]


def _placed(given: list[_Heads], angles: Expr | None, epsilon: float | None = None) -> heads.Heads:
    """Return where the heads of queries, keys and values lie, how many angles turn them, and the epsilon
    of norms that are still to come."""
    query, key, value = given
    turned = 0 if angles is None else int(angles.ty.shape.values[2])
    widths = (query.width, key.width, value.width)
    return heads.Heads(query.layout, key.layout, value.layout, widths, turned, epsilon)


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
        together: bool,
    ) -> None:
        """`epsilon` is that of norms of heads; `sequence`: all rows belong to one sequence (prefill);
        else row i is sequence i; `held` is the format of `ops/attention.py` that pages have;
        `together`: as GPUs want it, heads go to the cache by one operator: of a prompt those that turn,
        by `ops/place.py`; in decode all, by `ops/attend_parts.py`, which attends as well."""
        pages, width = tirx.Var("pages", "int64"), tirx.Var("width", "int64")
        page, size, kv_heads = attention.PAGE, kind.head_dim, kind.kv_heads
        self._b, self._kind, self._epsilon, self._sequence = b, kind, epsilon, sequence
        self._together = together and held == "float32"
        self._in_parts = self._together and not sequence
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

    def _normed(self, parts: list[Columns], where: HeadColumns, norm: str) -> _Heads:
        """Return the heads where they lie, or normalized, side by side."""
        b, x, layout = self._b, parts[where.source].tensor, self._layout(parts, where)
        if not norm:
            return _Heads(x, layout)
        epsilon = self._epsilon
        compute = lambda v, weight: heads.head_norm(v, weight, epsilon, layout)
        normed = b.op("head_norm", (epsilon, layout), compute, x, b.parameter(norm))
        return _Heads(normed, heads.Layout(layout.heads, layout.size))

    def _turned(self, of: _Heads, angles: Expr | None) -> Expr:
        """Return the heads (n, heads D) side by side, turned by `angles`."""
        b, layout = self._b, of.layout
        if angles is not None:
            turn = lambda v, a: heads.rope(v, a, layout)
            return b.op("rope", (layout,), turn, of.tensor, angles)
        size = layout.heads * layout.size
        if layout == heads.Layout(layout.heads, layout.size) and of.width == size:
            return of.tensor
        return b.op("take_heads", (layout,), lambda v: heads.take_heads(v, layout), of.tensor)

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
        rules = Scores(kind.scale, layer.window, kind.cap, kind.alibi)
        index, norms = tirx.const(layer.index, "int64"), _norms(kind, layer)
        if self._in_parts:
            return self._joined(parts, norms, angles, index, rules, rows)
        given = self._given(parts, norms)
        put = self._place if self._together and angles is not None else self._append
        queries = put(given, angles, index, rows)
        sizes = (kind.heads, kind.kv_heads, kind.head_dim)
        operands = [queries, self.keys, self.values, self.table, self.length, index]
        make = lambda: attend.attend(*sizes, sequence, rules, held)
        function = b.tir(("attend", sequence, rules), make)
        out = relax.TensorType((rows, kind.heads * kind.head_dim), "float32")
        return b.blocks.emit(relax.call_tir(function, operands, out))

    def _given(self, parts: list[Columns], norms: list[str]) -> list[_Heads]:
        """Return the heads of queries and keys, normalized where there are names of norms, and values."""
        kind = self._kind
        places = zip((kind.query, kind.key, kind.value), (*norms, ""), strict=True)
        return [self._normed(parts, where, norm) for where, norm in places]

    def _joined(
        self,
        parts: list[Columns],
        norms: list[str],
        angles: Expr | None,
        index: Expr,
        rules: Scores,
        rows: Expr,
    ) -> Expr:
        """Write keys and values into the cache and return the attention of a decode step, both by parts
        (`ops/attend_parts.py`), joined. Norms of single heads are its own."""
        b, own = self._b, norms if all(norms) and not self._kind.whole_norm else []
        given = self._given(parts, ["", ""] if own else norms)
        of = _placed(given, angles, self._epsilon if own else None)
        function = b.tir(("attend_parts", of, rules), lambda: attend_parts.attend_parts(of, rules))
        count = attend_parts.parts(of.key.heads)
        outs = [
            relax.TensorType((rows, count, of.query.heads * of.query.size), "float32"),
            relax.TensorType((rows, count, 2, of.query.heads), "float32"),
        ]
        before = [*map(b.parameter, own), *([] if angles is None else [angles])]
        operands = [*(part.tensor for part in given), *before, self.table, self.length, index]
        found, states = self._written(function, operands, *outs)
        return b.op("join", (), attend_parts.join, found, states)

    def _append(self, given: list[_Heads], angles: Expr | None, index: Expr, rows: Expr) -> Expr:
        """Write keys and values into the cache; return the queries."""
        query, key, value = given
        queries, new_keys = self._turned(query, angles), self._turned(key, angles)
        sequence = self._sequence
        make = lambda: attention.append(value.layout, sequence, value.width, self._held)
        function = self._b.tir(("append", sequence, value.layout, value.width), make)
        self._written(function, [new_keys, value.tensor, self.table, self.length, index])
        return queries

    def _place(self, given: list[_Heads], angles: Expr, index: Expr, rows: Expr) -> Expr:
        """Do the same by one operator."""
        of = _placed(given, angles)
        function = self._b.tir(("place", of), lambda: place.place(of))
        out = relax.TensorType((rows, of.query.heads * of.query.size), "float32")
        sources = [part.tensor for part in given]
        operands = [*sources, angles, self.table, self.length, index]
        (queries,) = self._written(function, operands, out)
        return queries

    def _written(self, function: Expr, operands: list[Expr], *results: Expr) -> list[Expr]:
        """Call what writes the cache; return its other results."""
        emit = self._b.blocks.emit
        call = relax.call_tir_inplace(
            function,
            [self.keys, self.values, *operands],
            inplace_indices=[0, 1, *(-1 for _ in results)],
            out_ty=[self._keys_type, self._values_type, *results],
        )
        written = emit(call)
        self.keys, self.values, *found = (
            emit(relax.TupleGetItem(written, i)) for i in range(2 + len(results))
        )
        return found
