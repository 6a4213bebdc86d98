"""Layers as Relax: how operators are put together into binary-coded linears and what is around them.

A layer emits calls into the function that its `Builder` has open. Every operator becomes a function
of its own, marked with `ops.OP`. Layers know neither families nor files nor targets: names of
parameters come in, types of linears come in, and `many` says whether the rows are many (prefill,
which widens planes into dense panels) or few (decode, which looks up and adds).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import relax

from shiftadd_tvm.decoder_model import Norm
from shiftadd_tvm.ops import (
    KEY,
    OP,
    activation,
    dense,
    elementwise,
    experts,
    gemm,
    gemm_half,
    hadamard,
    lut,
    lut_bits,
    lut_bits_group,
    lut_block,
    lut_bytes,
    lut_float,
    lut_group,
    sample,
    shift,
)

NUMBERS = "numbers"  # no planes: a matrix of floats, `<name>.weight`
Expr = Any  # TVM's classes have no static types
# operators that are made one on GPUs, and depend on more than their operands
KEYED = ("rms_norm", "layer_norm", "hadamard", "activate", "activate_mul")


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
    order: str = "bytes"  # of the planes: of `ops/planes.py`, one of `ops/words.py`, or `NUMBERS`
    grouped: bool = False  # blocks of one row that `ops/lut_group.py` or `lut_bits_group.py` can read

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
            attrs = {OP: name, **({KEY: json.dumps(key)} if name in KEYED else {})}
            call = self.blocks.call_te(
                function, *arguments, primfunc_name_hint=name, primfunc_attrs=attrs
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
    if group.stacks[0].order == NUMBERS:
        made = ((stored(b, x, s.name, sum(s.outputs), many), s) for s in group.stacks)
        return [part for y, stack in made for part in _columns(y, stack.outputs)]
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
    if activations in lut_bits.FORMATS and (linear.block is None or linear.grouped):
        columns = linear.block[1] if linear.block else 0
        return _fixed_multiplier(b, x, lut_bits.FORMATS[activations], columns, many)
    form = lut.FORMATS.get(activations)
    rounded = lambda: b.op("lut_round", (form,), lambda v: lut.rounded(v, form), x) if form else x
    if linear.block is not None and not linear.grouped:
        name, function = ("gemm", lut_block.product) if many else ("lut", lut_block.query)
        return _Multiplier(f"{name}_block", function, linear.block, [x], BLOCKED)
    columns = linear.block[1] if linear.block else 0
    if many and columns:  # with the numbers that the look-ups have: both phases give the same
        return _Multiplier("gemm_group", lut_group.product, (columns,), [rounded()], GROUPED)
    if form is None and many:
        return _Multiplier("gemm_planes", gemm.planes_product, (), [x], SEPARABLE)
    if form is None:
        tables = b.op("lut_float_build", (), lut_float.build, x)
        return _Multiplier("lut_float_query", lut_float.query, (), [tables], SEPARABLE)
    if many:
        parts = _parts(b, b.op("lut_fix", (form,), lambda v: lut.fix(v, form), x))
        return _Multiplier("gemm_fixed", gemm.fixed_product, (), parts, SEPARABLE)
    parts = _parts(b, b.op("lut_build", (form, columns), lambda v: lut.build(v, form, columns), x))
    if columns:
        return _Multiplier("lut_group", lut_group.query, (columns, form), parts, GROUPED)
    return _Multiplier("lut_query", lut.query, (form,), parts, SEPARABLE)


def _fixed_multiplier(
    b: Builder, x: Expr, form: lut_bits.Format, columns: int, many: bool
) -> _Multiplier:
    if many and not columns and form.name in gemm_half.FORMATS:
        parts = _parts(b, b.op("half_build", (), gemm_half.build, x))
        return _Multiplier("gemm_half", gemm_half.product, (), parts, SEPARABLE)
    if many:
        rounded = b.op("lut_round", (form,), lambda v: lut.rounded(v, form.fixed), x)
        if columns:
            return _Multiplier("gemm_group", lut_group.product, (columns,), [rounded], GROUPED)
        return _Multiplier("gemm_planes", gemm.planes_product, (), [rounded], SEPARABLE)
    if columns:
        grouped = lambda v: lut_bits_group.build(v, form, columns)
        parts = _parts(b, b.op("lut_bits_group_build", (form, columns), grouped, x))
        options = (columns, form)
        return _Multiplier("lut_bits_group", lut_bits_group.query, options, parts, GROUPED)
    read = lut_bytes.read(form, int(x.ty.shape[0]))
    build, query, _ = lut_bytes.OPERATORS[read]
    parts = _parts(b, b.op(f"lut_{read}_build", (form,), lambda v: build(v, form), x))
    return _Multiplier(f"lut_{read}_query", query, (form,), parts, SEPARABLE)


def _parts(b: Builder, pair: Expr) -> list[Expr]:
    return [b.blocks.emit(relax.TupleGetItem(pair, index)) for index in range(2)]


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


def stored(b: Builder, x: Expr, name: str, outputs: int, many: bool) -> Expr:
    """Return x (n, K) times a matrix (outputs, K) that is stored in floats, no head."""
    return head(b, x, name, outputs, False, many)


def gated(b: Builder, function: str, gate: Columns, up: Columns) -> Expr:
    """Return function(gate) · up (n, F), by a name of `ops/activation.py`."""
    layout = (gate.size, gate.start, up.start)
    compute = lambda g, u: activation.activate_mul(g, u, function, *layout)
    return b.op("activate_mul", (function, *layout), compute, gate.tensor, up.tensor)


def activated(b: Builder, function: str, x: Columns) -> Expr:
    """Return function(x) (n, F), by a name of `ops/activation.py`."""
    compute = lambda v: activation.activate(v, function, x.size, x.start)
    return b.op("activate", (function, x.size, x.start), compute, x.tensor)


def routed(b: Builder, scores: Expr, chosen: int) -> Expr:
    """Return the weights (n, E) of experts by their scores (n, E)."""
    return b.op("route", (chosen,), lambda s: experts.route(s, chosen), scores)


def mixed(b: Builder, routes: Expr, outputs: Sequence[Expr]) -> Expr:
    """Return the experts' outputs, each (n, hidden), summed by their weights (n, E)."""
    return b.op("mix", (), experts.mix, routes, *outputs)


def norm(b: Builder, x: Expr, name: str, kind: Norm) -> Expr:
    """Return the normalized rows of x (n, hidden); gains are stored with their offset."""
    weight, epsilon = b.parameter(f"{name}.weight"), kind.epsilon
    if kind.kind == "rms":
        compute = lambda v, weight: elementwise.rms_norm(v, weight, epsilon)
        return b.op("rms_norm", (epsilon,), compute, x, weight)
    shifted = lambda v, weight, bias: elementwise.layer_norm(v, weight, bias, epsilon)
    return b.op("layer_norm", (epsilon,), shifted, x, weight, b.parameter(f"{name}.bias"))


def add(b: Builder, x: Expr, y: Expr) -> Expr:
    """Return x + y (n, hidden)."""
    return b.op("add", (), elementwise.add, x, y)


def scaled(b: Builder, x: Expr, factor: float) -> Expr:
    """Return factor · x (n, hidden)."""
    return (
        x if factor == 1.0 else b.op("scale", (factor,), lambda v: elementwise.scale(v, factor), x)
    )


def soft_capped(b: Builder, x: Expr, cap: float) -> Expr:
    """Return cap · tanh(x / cap) (n, N), or x where there is no cap."""
    return b.op("soft_cap", (cap,), lambda v: activation.soft_cap(v, cap), x) if cap else x


def positioned(b: Builder, x: Expr, positions: Expr, name: str, offset: int) -> Expr:
    """Return x (n, hidden) plus the learned embedding of positions (n,)."""
    compute = lambda v, p, table: elementwise.add_positions(v, p, table, offset)
    table = b.parameter(f"{name}.weight")
    return b.op("add_positions", (offset,), compute, x, positions, table)


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
