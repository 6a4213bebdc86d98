"""Layers as Relax: how operators are put together into binary-coded linears, attention and blocks.

A layer emits calls into the function that its `Builder` has open. Every operator becomes a function
of its own, marked with `ops.OP`. Layers know neither families nor files nor targets: names of
parameters come in, types of linears come in, and `many` says whether the rows are many (prefill,
which widens planes into dense panels) or few (decode, which looks up and adds).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx

from shiftadd_tvm.ops import (
    OP,
    attend,
    attention,
    dense,
    elementwise,
    gemm,
    hadamard,
    lut,
    lut_block,
    lut_float,
    lut_group,
    sample,
    shift,
)

Expr = Any  # TVM's classes have no static types


@dataclass(frozen=True)
class Linear:
    """What the graph needs to know of one stored matrix of binary planes, `<name>.<suffix>`.

    Linears may lie in it one below the other (`parameters.stacked`): `outputs` are the sizes of
    each of the `members`, and one call computes them all.
    """

    members: tuple[str, ...]
    outputs: tuple[int, ...]
    bias: bool
    block: tuple[int, int] | None = None  # (rows, columns) that share a scale; None: separable
    grouped: bool = False  # blocks of one row that `ops/lut_group.py` can read

    @property
    def name(self) -> str:
        """The name under which the parameters stand: the first member's."""
        return self.members[0]


@dataclass(frozen=True)
class Group:
    """Linears that read one activation: rotated, shifted, tabled once, under the leader's name."""

    stacks: tuple[Linear, ...]
    rotation: int  # Hadamard block; 1: none

    @property
    def leader(self) -> str:
        """The name under which the shared parameters stand."""
        return self.stacks[0].name


@dataclass(frozen=True)
class Columns:
    """Columns start .. start + size of `tensor`: one linear's outputs among those of a stack."""

    tensor: Expr
    start: int
    size: int


@dataclass(frozen=True)
class Heads:
    """The sizes of grouped-query attention."""

    queries: int
    keys: int
    size: int


class Builder:
    """Emits operators into Relax functions that all take the same tuple of parameters last."""

    def __init__(self, parameters: dict[str, Expr]) -> None:
        """`parameters` maps names to Relax tensor types, in the order in which hosts pass them."""
        self.blocks = relax.BlockBuilder()
        self._types = parameters
        self._index = {name: index for index, name in enumerate(parameters)}
        self._functions: dict[tuple[object, ...], Expr] = {}
        self._calls: dict[tuple[object, ...], tuple[Expr, Expr]] = {}
        self._bundle: Expr = None
        self._open = ""

    @contextmanager
    def function(
        self, name: str, inputs: Sequence[Expr], rows: int = 0, *, parameters: bool = True
    ) -> Iterator[Callable[[Expr], None]]:
        """Open a function of `inputs` and the parameters; yield a call that sets its result.

        `rows` bounds the symbolic variable n, so that memory can be planned.
        """
        self._bundle = relax.Var("parameters", relax.TupleType(list(self._types.values())))
        bundle = [self._bundle] if parameters else []
        self._open = name  # symbolic sizes belong to one function
        attrs = {"tir_var_upper_bound": {"n": rows}} if rows else None
        with self.blocks.function(name, [*inputs, *bundle], attrs=attrs):
            with self.blocks.dataflow():
                results: list[Expr] = []
                yield lambda value: results.append(self.blocks.emit_output(value))
            self.blocks.emit_func_output(results[0])

    def parameter(self, name: str) -> Expr:
        """Return the parameter called `name` inside the open function."""
        return self.blocks.emit(relax.TupleGetItem(self._bundle, self._index[name]))

    def optional(self, name: str, present: bool) -> list[Expr]:
        """Return the parameter in a list, or no parameter."""
        return [self.parameter(name)] if present else []

    def op(
        self, name: str, key: tuple[object, ...], function: Callable[..., Expr], *arguments: Expr
    ) -> Expr:
        """Emit the tensor expression `function` of `arguments` as the operator `name`.

        `key` holds what `function` depends on beside its arguments' types: a decoder repeats each
        operator in every block, and building its function once saves most of the time.
        """
        signature = (self._open, name, key, *(str(argument.ty) for argument in arguments))
        if signature not in self._calls:
            call = self.blocks.call_te(
                function, *arguments, primfunc_name_hint=name, primfunc_attrs={OP: name}
            )
            self._calls[signature] = call.args[0], call.ty_args[0]
            return self.blocks.emit(call)
        variable, result = self._calls[signature]
        outputs = list(result.fields) if isinstance(result, relax.TupleType) else result
        return self.blocks.emit(relax.call_tir(variable, list(arguments), outputs))

    def tir(self, key: tuple[object, ...], make: Callable[[], Expr]) -> Expr:
        """Return the global variable of a TIR function, added once for each `key`."""
        if key not in self._functions:
            self._functions[key] = self.blocks.add_func(make(), str(key[0]))
        return self._functions[key]


def linears(b: Builder, x: Expr, group: Group, activations: str, many: bool) -> list[Columns]:
    """Return the outputs of each linear of a group for activations x (n, K), in their order.

    `activations` is the format in which look-ups hold them (`ops/lut.py`).
    """
    if group.rotation > 1:
        rotate = lambda values, signs: hadamard.rotate(values, signs, group.rotation)
        x = b.op("hadamard", (group.rotation,), rotate, x, b.parameter(f"{group.leader}.signs"))
    if group.stacks[0].block is None:
        x = b.op("shift", (), shift.scale_columns, x, b.parameter(f"{group.leader}.column_terms"))
    multiply = _multiplier(b, x, group.stacks[0], activations, many)
    pairs = ((_multiplied(b, stack, multiply), stack) for stack in group.stacks)
    return [part for y, stack in pairs for part in _columns(y, stack.outputs)]


def _columns(y: Expr, sizes: tuple[int, ...]) -> Iterator[Columns]:
    start = 0
    for size in sizes:
        yield Columns(y, start, size)
        start += size


@dataclass(frozen=True)
class _Multiplier:
    """The operator that multiplies one activation by planes, and what it reads of both."""

    op: str
    function: Callable[..., Expr]
    options: tuple[object, ...]  # behind the operands and the number of outputs
    activation: list[Expr]
    suffixes: tuple[str, ...]


SEPARABLE = ("planes", "plane_terms", "row_terms")
GROUPED = ("planes", "group_terms")
BLOCKED = ("planes", "block_terms")


def _multiplier(b: Builder, x: Expr, linear: Linear, activations: str, many: bool) -> _Multiplier:
    form = lut.FORMATS.get(activations)
    rounded = lambda: b.op("lut_round", (form,), lambda v: lut.rounded(v, form), x) if form else x
    if linear.block is not None and not linear.grouped:
        name, function = ("gemm", lut_block.product) if many else ("lut", lut_block.query)
        return _Multiplier(f"{name}_block", function, linear.block, [x], BLOCKED)
    columns = linear.block[1] if linear.block else 0
    if many:  # with the numbers that the look-ups have: both phases give the same
        if columns:
            return _Multiplier("gemm_group", lut_group.product, (columns,), [rounded()], GROUPED)
        return _Multiplier("gemm_planes", gemm.planes_product, (), [rounded()], SEPARABLE)
    if form is None:
        tables = b.op("lut_float_build", (), lut_float.build, x)
        return _Multiplier("lut_float_query", lut_float.query, (), [tables], SEPARABLE)
    built = b.op("lut_build", (form, columns), lambda v: lut.build(v, form, columns), x)
    parts = [b.blocks.emit(relax.TupleGetItem(built, index)) for index in range(2)]
    if columns:
        return _Multiplier("lut_group", lut_group.query, (columns, form), parts, GROUPED)
    return _Multiplier("lut_query", lut.query, (form,), parts, SEPARABLE)


def _multiplied(b: Builder, stack: Linear, by: _Multiplier) -> Expr:
    operands = [*by.activation, *(b.parameter(f"{stack.name}.{s}") for s in by.suffixes)]
    bias = b.optional(f"{stack.name}.bias", stack.bias)
    count, outputs = len(operands), sum(stack.outputs)
    compute = lambda *v: by.function(*v[:count], outputs, *by.options, *v[count:])
    return b.op(by.op, (outputs, *by.options), compute, *operands, *bias)


def embedding(b: Builder, ids: Expr, name: str, hidden: int, scaled: bool) -> Expr:
    """Return the rows (n, hidden) of ids (n,) int32."""
    scale = b.optional(f"{name}.weight_scale", scaled)
    compute = lambda i, table, *scale: dense.embed(i, table, hidden, *scale)
    return b.op("embed", (hidden,), compute, ids, b.parameter(f"{name}.weight"), *scale)


def head(b: Builder, x: Expr, name: str, outputs: int, scaled: bool, many: bool) -> Expr:
    """Return the logits (n, outputs) of x (n, hidden) by a stored matrix (embedding or head)."""
    op, function = ("gemm_dense", gemm.dense_product) if many else ("dense", dense.multiply)
    scale = b.optional(f"{name}.weight_scale", scaled)
    compute = lambda v, table, *scale: function(v, table, outputs, *scale)
    return b.op(op, (outputs,), compute, x, b.parameter(f"{name}.weight"), *scale)


def gated(b: Builder, gate: Columns, up: Columns) -> Expr:
    """Return silu(gate) · up (n, F)."""
    layout = (gate.size, gate.start, up.start)
    compute = lambda g, u: elementwise.silu_mul(g, u, *layout)
    return b.op("silu_mul", layout, compute, gate.tensor, up.tensor)


def norm(b: Builder, x: Expr, name: str, epsilon: float) -> Expr:
    """Return the RMS-normalized rows of x (n, hidden)."""
    compute = lambda v, weight: elementwise.rms_norm(v, weight, epsilon)
    return b.op("rms_norm", (epsilon,), compute, x, b.parameter(f"{name}.weight"))


class Cache:
    """The key/value cache inside one function: pages as inputs, updated in place layer by layer."""

    def __init__(
        self, b: Builder, heads: Heads, layers: int, sequences: int, sequence: bool
    ) -> None:
        """`sequence`: all rows belong to one sequence (prefill); else row i is sequence i."""
        pages, width = tirx.Var("pages", "int64"), tirx.Var("width", "int64")
        page, size = attention.PAGE, heads.size
        self._b, self._heads, self._sequence = b, heads, sequence
        self._keys_type = relax.TensorType((layers, pages, heads.keys, size, page), "float32")
        self._values_type = relax.TensorType((layers, pages, heads.keys, page, size), "float32")
        self.keys = relax.Var("keys", self._keys_type)
        self.values = relax.Var("values", self._values_type)
        self.table = relax.Var("block_table", relax.TensorType((sequences, width), "int32"))
        self.length = relax.Var("length", relax.TensorType((sequences,), "int32"))

    def inputs(self) -> list[Expr]:
        """Return the function inputs that make up the cache."""
        return [self.keys, self.values, self.table, self.length]

    def angles(self, rows: Expr) -> Expr:
        """Return the rotary angles (n, 2, D/2) of this call's `rows` tokens."""
        kind = self._sequence
        function = self._b.tir(("positions", kind), lambda: attention.positions(kind))
        out = relax.TensorType((rows,), "int32")
        positions = self._b.blocks.emit(relax.call_tir(function, [self.length], out))
        frequencies = self._b.parameter("rope.frequencies")
        return self._b.op("rope_angles", (), elementwise.rope_angles, positions, frequencies)

    def _rotated(self, x: Columns, angles: Expr, heads: int) -> Expr:
        compute = lambda v, a: elementwise.rope(v, a, heads, x.start)
        return self._b.op("rope", (heads, x.start), compute, x.tensor, angles)

    def attend(
        self, layer: int, q: Columns, k: Columns, v: Columns, angles: Expr, rows: Expr
    ) -> Expr:
        """Append k, v (n, keys D) to `layer` and return the attention (n, queries D) of q."""
        b, heads, kind = self._b, self._heads, self._sequence
        queries = self._rotated(q, angles, heads.queries)
        new_keys = self._rotated(k, angles, heads.keys)
        layout = (int(v.tensor.ty.shape.values[1]), v.start)
        append = b.tir(
            ("append", kind, *layout),
            lambda: attention.append(heads.keys, heads.size, kind, *layout),
        )
        index = tirx.const(layer, "int64")
        written = b.blocks.emit(
            relax.call_tir_inplace(
                append,
                [self.keys, self.values, new_keys, v.tensor, self.table, self.length, index],
                inplace_indices=[0, 1],
                out_ty=[self._keys_type, self._values_type],
            )
        )
        self.keys = b.blocks.emit(relax.TupleGetItem(written, 0))
        self.values = b.blocks.emit(relax.TupleGetItem(written, 1))
        make = lambda: attend.attend(heads.queries, heads.keys, heads.size, kind)
        function = b.tir(("attend", kind), make)
        out = relax.TensorType((rows, heads.queries * heads.size), "float32")
        operands = [queries, self.keys, self.values, self.table, self.length, index]
        return b.blocks.emit(relax.call_tir(function, operands, out))


SAMPLING = {  # input of `sample` beside the logits -> (dtype, whether it has a row of tokens)
    "history": ("int32", True),
    "length": ("int32", False),
    "temperature": ("float32", False),
    "top_k": ("int32", False),
    "top_p": ("float32", False),
    "penalty": ("float32", False),
    "seed": ("int64", False),
    "step": ("int32", False),
}


def sampled(b: Builder, logits: Expr, inputs: dict[str, Expr], rows: Expr, vocabulary: int) -> Expr:
    """Return the next token (rows,) int32 of logits (rows, vocabulary); inputs by `SAMPLING`."""
    scores_type = relax.TensorType((rows, vocabulary), "float32")

    def call(name: str, make: Callable[[], Expr], out: Expr, *operands: Expr) -> Expr:
        return b.blocks.emit(relax.call_tir(b.tir((name,), make), list(operands), out))

    def change(key: tuple[object, ...], make: Callable[[], Expr], x: Expr, *operands: Expr) -> Expr:
        function = b.tir(key, make)
        changed = relax.call_tir_inplace(
            function, [x, *operands], inplace_indices=[0], out_ty=scores_type
        )
        return b.blocks.emit(changed)

    penalty = [inputs[name] for name in ("history", "length", "penalty")]
    penalize = lambda: sample.penalize(vocabulary)
    x = call("sample_penalize", penalize, scores_type, logits, *penalty)
    soften = lambda: sample.soften(vocabulary)
    x = change(("sample_soften",), soften, x, inputs["temperature"])
    for name, by_mass in (("top_k", False), ("top_p", True)):
        keep = lambda mass=by_mass: sample.keep(vocabulary, mass)
        x = change(("sample_keep", name), keep, x, inputs[name])
    tokens = relax.TensorType((rows,), "int32")
    draw = lambda: sample.draw(vocabulary)
    return call("sample_draw", draw, tokens, x, inputs["seed"], inputs["step"])
