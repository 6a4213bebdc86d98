"""Which functions are worth tuning: the static look-ups of a model, or of models that we ship logs for.

A function depends only on the shapes of its tensors, so `Shape` says all of it, and makes it again
for another number of tokens. What compiling emits and what a `Shape` makes is the same function; a
test holds them together, since records are found by it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.tirx import IntImm, PrimFunc

from shiftadd_tvm import shapes
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.benchmark import memory
from shiftadd_tvm.families import Config
from shiftadd_tvm.ops import OP, gemm, lut, lut_bits, words
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.pipeline import schedules
from shiftadd_tvm.powers import EXPONENT_BIAS
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.tuning import word_shapes
from shiftadd_tvm.tuning.emitted import emitted, sizes_of
from shiftadd_tvm.tuning.measure import Data
from shiftadd_tvm.tuning.word_shapes import WordShape

DEFAULTS = QuantizeSettings()
FORMATS = {len(form.digit_bits): form for form in lut.FORMATS.values()}
SHIPPED_BITS = (2, 3, 4)
TERMS = (DEFAULTS.row_terms, DEFAULTS.plane_terms)  # of r and c, as `quantize` writes them

SHIPPED = ("smollm2-135m", "llama-2-7b", "llama-3-8b", "opt-1.3b")

Array = np.ndarray


@dataclass(frozen=True)
class Shape:
    """What a look-up over packed planes depends on."""

    outputs: int
    steps: int  # of 8 inputs, padded
    bits: int
    tokens: int
    row_terms: int
    plane_terms: int
    bias: bool
    digits: int  # of a table entry

    @property
    def held(self) -> str:
        """The activations in a task's name."""
        return f"d{self.digits}"

    @property
    def inputs(self) -> int:
        """The inputs, padded to whole steps."""
        return self.steps * order.STEP

    @property
    def nbytes(self) -> int:
        """The bytes of the planes, without padding rows."""
        return self.outputs * self.steps * self.bits

    def tensors(self, rows: int) -> list[tuple[tuple[int, ...], str]]:
        """Return (shape, dtype) of each argument but the output, for row blocks of `rows`."""
        planes = order.shape(self.bits, self.outputs, self.inputs, rows)
        found: list[tuple[tuple[int, ...], str]] = [
            ((self.tokens, self.steps, 2, self.digits, order.ENTRIES), "uint8"),
            ((self.tokens, 2), "uint32"),
            (planes, "uint32"),
            ((planes[0], self.bits, self.plane_terms), "uint8"),
            ((self.row_terms, planes[0] * rows), "uint8"),
        ]
        return found + ([((self.outputs,), "float32")] if self.bias else [])

    def function(self, rows: int) -> PrimFunc:
        """Return the `lut_query` of this shape as compiling emits it."""
        form = FORMATS[self.digits]
        compute = lambda t, s, p, c, r, *b: lut.query(t, s, p, c, r, self.outputs, form, *b)
        return emitted("lut_query", compute, self.tensors(rows))


@dataclass(frozen=True)
class Task:
    """One function to tune, and how its weights lie in its model."""

    function: PrimFunc
    shape: Shape | WordShape
    share: float  # bytes that the model reads through this function for a token
    model_bytes: int  # of all planes of the model: what a step runs over

    @property
    def op(self) -> str:
        """The operator's name."""
        return str(self.function.attrs[OP])

    @property
    def bytewise(self) -> Shape:
        """The shape of a processor's task."""
        assert isinstance(self.shape, Shape)
        return self.shape

    @property
    def name(self) -> str:
        """A name for people, the same for the same function."""
        shape = self.shape
        rest = f"{shape.bits}bit_m{shape.tokens}_{shape.held}"
        terms = f"r{shape.row_terms}p{shape.plane_terms}{'b' if shape.bias else ''}"
        return f"{self.op}_{shape.outputs}x{shape.inputs}_{rest}_{terms}"


def gemm_function(shape: Shape, rows: int) -> PrimFunc:
    """Return the `gemm_fixed` that prefill runs in the place of `shape`'s look-up."""
    n = tirx.Var("n", "int64")
    fixed = [([n, shape.inputs], "int16"), ([n, 1], "uint32")]
    compute = lambda q, e, p, c, r, *b: gemm.fixed_product(q, e, p, c, r, shape.outputs, *b)
    return emitted("gemm_fixed", compute, [*fixed, *shape.tensors(rows)[2:]])


def fix_function(shape: Shape) -> PrimFunc:
    """Return the `lut_fix` that makes what `gemm_function` multiplies."""
    values = [([tirx.Var("n", "int64"), shape.inputs], "float32")]
    return emitted("lut_fix", lambda v: lut.fix(v, FORMATS[shape.digits]), values)


def build_function(shape: Shape) -> PrimFunc:
    """Return the `lut_build` that makes the tables of `shape`'s look-up."""
    values = [((shape.tokens, shape.inputs), "float32")]
    return emitted("lut_build", lambda v: lut.build(v, FORMATS[shape.digits]), values)


def tunable(backend: Backend) -> list[str]:
    """Return the operators whose schedule has knobs, and whose arguments `Shape` knows."""
    found = schedules(backend.family)
    known = ("lut_query", *word_shapes.OPS)
    return [op for op in known if getattr(found.get(op), "KNOBS", None)]


def of_module(module: IRModule, backend: Backend) -> list[Task]:
    """Return the tasks of a model's Relax module: its static look-ups, by the share of their bytes."""
    calls = _calls(module)
    found = [
        (function, shape_of(function), calls[variable.name_hint])
        for variable, function in module.functions_items()
        if _is_tunable(function, backend)
    ]
    total = sum(s.nbytes * count for _, s, count in found if s.tokens == 1)
    return [Task(f, s, s.nbytes * count, total) for f, s, count in found]


def _is_tunable(function: Any, backend: Backend) -> bool:
    if not isinstance(function, PrimFunc) or (function.attrs or {}).get(OP) not in tunable(backend):
        return False
    return all(isinstance(size, IntImm) for v in function.params for size in v.shape)


def _calls(module: IRModule) -> Counter[str]:
    """Return how often the module's Relax functions call each of the others."""
    counts = Counter[str]()

    def visit(node: Any) -> None:
        if isinstance(node, relax.Call):
            counts.update(a.name_hint for a in node.args if isinstance(a, tvm.ir.GlobalVar))

    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return counts


def shape_of(function: PrimFunc) -> Shape | WordShape:
    """Return the shape of a look-up."""
    op = str(function.attrs[OP])
    if op in word_shapes.OPS:
        return word_shapes.shape_of(function, op)
    (tables, _, planes, *_), common = sizes_of(function)
    return Shape(steps=planes[2], bits=planes[1], digits=tables[3], **common)


def shipped(
    backend: Backend, models: Sequence[str] = SHIPPED, activations: str = ""
) -> list[Task]:
    """Return the tasks of published models, those that we ship logs for: one token, 2 to 4 bits.

    Raises `UsageError` for an unknown name.
    """
    activations = backend.chosen(activations)
    found: dict[Shape | WordShape, Task] = {}
    for model in models:
        for bits in SHIPPED_BITS:
            for task in _of_model(model, bits, backend, activations):
                known = found.get(task.shape)
                if known is not None:  # the larger model's weights lie further away
                    largest = max(known.model_bytes, task.model_bytes)
                    task = replace(task, model_bytes=largest, share=task.share + known.share)
                found[task.shape] = task
    return list(found.values())


def _of_model(model: str, bits: int, backend: Backend, activations: str) -> Iterator[Task]:
    layers, matrices = _matrices(shapes.config(model))
    found = [_shape(n, k, bits, bias, activations) for n, k, bias in matrices]
    total = layers * sum(shape.nbytes for shape in found)
    for shape in found:
        yield Task(shape.function(backend.rows), shape, shape.nbytes * layers, total)


def _shape(outputs: int, inputs: int, bits: int, bias: bool, activations: str) -> Shape | WordShape:
    if activations in lut_bits.FORMATS:
        steps = words.steps(inputs, lut_bits.FORMATS[activations].order)
        return WordShape(outputs, steps, bits, 1, *TERMS, bias, activations)
    digits = len(next(iter(lut.FORMATS.values())).digit_bits)
    return Shape(outputs, order.steps(inputs), bits, 1, *TERMS, bias, digits)


def _matrices(config: Config) -> tuple[int, list[tuple[int, int, bool]]]:
    """Return the layers of a published model, and (outputs, inputs, bias) of a layer's matrices.

    Linears that read one activation are stacked: query, key and value; gate and up.
    """
    size = lambda name: int(str(config[name]))
    hidden, layers = size("hidden_size"), size("num_hidden_layers")
    if config["model_type"] == "opt":
        wide, bias, keys, up = size("ffn_dim"), True, hidden, 1
    else:
        wide, bias, up = size("intermediate_size"), False, 2
        keys = hidden * size("num_key_value_heads") // size("num_attention_heads")
    pairs = [(hidden + 2 * keys, hidden), (hidden, hidden), (up * wide, hidden), (hidden, wide)]
    return layers, [(*pair, bias) for pair in pairs]


def data(task: Task, rows: int, cold: int | None = None) -> Data:
    """Return random arguments: the same ones each time, weights in as many copies as they need.

    Copies have `model_bytes` together, at most `cold` (default: what no cache of this machine keeps).
    """
    rng = np.random.default_rng(0)
    tensors = task.shape.tensors(rows)
    first = [tvm.runtime.tensor(_random(rng, task.bytewise, *t)) for t in tensors]
    planes = first[2].numpy()
    wanted = min(task.model_bytes, memory.cold_bytes() if cold is None else cold)
    sets = [first]
    for _ in range(1, max(1, -(-wanted // planes.nbytes))):
        sets.append([*first[:2], tvm.runtime.tensor(planes), *first[3:]])
    return Data(sets, ((task.shape.tokens, task.shape.outputs), "float32"))


def _random(rng: np.random.Generator, of: Shape, shape: tuple[int, ...], dtype: str) -> Array:
    """Return sensible numbers for one argument: exponents near 0, digits that a table can hold."""
    if dtype == "float32":
        return rng.standard_normal(shape).astype(np.float32)
    if dtype == "uint8" and len(shape) == 5:
        return rng.integers(0, 128, shape, np.uint8)
    if dtype == "uint8":
        return rng.integers(EXPONENT_BIAS - 3, EXPONENT_BIAS + 1, shape, np.uint8)
    if len(shape) == 2:  # sum of magnitudes, exponent
        sums = rng.integers(0, 1000 * of.inputs, (shape[0], 1), np.uint32)
        return np.concatenate([sums, np.full_like(sums, EXPONENT_BIAS)], axis=1)
    return np.frombuffer(rng.bytes(prod(shape) * 4), np.uint32).reshape(shape)
