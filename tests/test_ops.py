"""Gate 1: every compiled operator equals its NumPy reference, on drawn shapes and targets.

Activations are small whole numbers and scales powers of two close together, so that every order of
summation gives the same float32: where nothing else rounds, equality is exact.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import kernels
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from shiftadd_tvm import backend, bcq, ops
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import (
    activation,
    dense,
    elementwise,
    experts,
    gemm,
    hadamard,
    heads,
    lut,
    lut_block,
    lut_float,
    lut_group,
    read_memory,
    shift,
)
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.tensorfile import from_float32

FORMATS = ("row-group", "column-wise", "block-wise", "odd")
TIR_OPS = {  # see test_attention.py and test_sample.py
    *("positions", "append", "attend"),
    *("sample_penalize", "sample_soften", "sample_keep", "sample_draw"),
}
GPU_OPS = {  # see cuda_cases.py
    *("lut_bits_build", "lut_bits_query"),
    *("lut_tables_build", "lut_tables_query"),
    *("lut_bytes_build", "lut_bytes_query"),
    *("lut_bits_group_build", "lut_bits_group"),
    *("half_build", "gemm_half"),
    *("place", "attend_parts", "join"),
    "lutgemm",
}


@dataclass(frozen=True)
class Shape:
    """The sizes of one operator call; each operator uses those that it has."""

    rows: int = 1
    outputs: int = 1
    inputs: int = 1
    bits: int = 1
    terms: int = 1
    bias: bool = False
    symbolic: bool = False
    dtype: str = "F32"
    form: str = "row-group"
    seed: int = 0

    def block(self) -> tuple[int, int]:
        """Return the (rows, columns) that share a scale."""
        n = self.outputs
        return {
            "row-group": (1, 32),
            "column-wise": (n, 1),
            "block-wise": (max(1, n // 8), 8),
            "odd": (7, 4),
        }[self.form]


@dataclass(frozen=True)
class Case:
    """What to compile, what to feed it, and what must come out."""

    compute: Callable[..., Any]
    arrays: list[np.ndarray]
    expected: np.ndarray | list[np.ndarray]
    tolerance: float = 0.0
    symbolic: tuple[int, ...] = ()  # arrays with a symbolic first axis, if the shape asks for it


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32)


def term_bytes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return terms ±2^-1 .. ±2^2, one in six absent."""
    codes = rng.integers(63, 67, shape) + 128 * rng.integers(0, 2, shape)
    return np.where(rng.random(shape) < 1 / 6, 0, codes).astype(np.uint8)


def planes(rng: np.random.Generator, s: Shape) -> np.ndarray:
    return bcq.pack_planes(rng.random((s.bits, s.outputs, s.inputs)) < 0.5)


def biases(rng: np.random.Generator, s: Shape) -> list[np.ndarray]:
    return [numbers(rng, s.outputs)] if s.bias else []


def case_shift(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x, codes = numbers(rng, s.rows, s.inputs), term_bytes(rng, s.inputs, s.terms)
    expected = shift.reference_terms(x, codes)
    return Case(shift.scale_columns, [x, np.ascontiguousarray(codes.T)], expected, symbolic=(0,))


def case_hadamard(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x, signs = numbers(rng, s.rows, s.inputs), bcq.random_signs(s.inputs, s.seed)
    block = bcq.rotation_block(s.inputs, 64)
    return Case(
        lambda v, d: hadamard.rotate(v, d, block),
        [x, signs],
        hadamard.reference_rotate(x, signs, block),
        symbolic=(0,),
    )


def activations(s: Shape, rng: np.random.Generator) -> np.ndarray:
    """Return activations of any size, with one large one, or whole numbers that none rounds."""
    if s.terms == 1:
        return numbers(rng, s.rows, s.inputs)
    x = rng.standard_normal((s.rows, s.inputs)) * 2.0 ** rng.integers(-9, 9, (s.rows, 1))
    x[:, 0] *= 20
    return x.astype(np.float32)


def form_of(s: Shape) -> lut.Format:
    return lut.FORMATS["int8" if s.seed % 3 == 0 else "int16"]


def case_lut_build(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x, form = activations(s, rng), form_of(s)
    columns = order.STEP * (s.seed % 4)  # inputs whose |q| are summed together; 0: all
    tables, scale = lut.reference_build(x, form, columns)
    return Case(lambda v: lut.build(v, form, columns), [x], [tables, scale])


def case_lut_round(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x, form = activations(s, rng), form_of(s)
    expected = lut.reference_rounded(x, form)
    return Case(lambda v: lut.rounded(v, form), [x], expected, symbolic=(0,))


def case_lut_fix(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x, form = activations(s, rng), form_of(s)
    return Case(lambda v: lut.fix(v, form), [x], list(lut.reference_fix(x, form)), symbolic=(0,))


def case_lut_float_build(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x = rng.standard_normal((s.rows, s.inputs)).astype(np.float32)  # the order of adds is defined
    return Case(lut_float.build, [x], lut_float.reference_build(x), symbolic=(0,))


def _separable(
    s: Shape, rng: np.random.Generator, preset: Backend
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the operands beside the activations: packed, and as the references take them."""
    bits, levels = planes(rng, s), term_bytes(rng, s.bits, s.terms)
    row_terms, bias = term_bytes(rng, s.outputs, min(s.terms, 3)), biases(rng, s)
    blocks = order.row_blocks(s.outputs, preset.rows)
    packed = [
        order.pack(bits, preset.rows),
        np.repeat(levels[None], blocks, axis=0),
        order.pack_row_terms(row_terms, preset.rows),
        *bias,
    ]
    return packed, [bits, levels, row_terms, *bias]


def case_lut_query(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    form = form_of(s)
    built = lut.reference_build(activations(s, rng), form)
    packed, plain = _separable(s, rng, preset)
    return Case(
        lambda t, e, p, c, r, *bias: lut.query(t, e, p, c, r, s.outputs, form, *bias),
        [*built, *packed],
        lut.reference_query(*built, *plain[:3], form, *plain[3:]),
    )


def _grouped(
    s: Shape, rng: np.random.Generator, preset: Backend
) -> tuple[int, np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Return the inputs that share a scale, activations, and packed and plain operands."""
    columns = order.STEP * (1 + s.seed % 5)
    inputs = -(-s.inputs // columns) * columns - s.seed % order.STEP  # whole steps, a tail in one
    s = dataclasses.replace(s, inputs=inputs)
    assert lut_group.fits(inputs, 1, columns)
    x, bits, bias = activations(s, rng), planes(rng, s), biases(rng, s)
    codes = term_bytes(rng, s.bits, s.outputs, -(-inputs // columns), s.terms)
    packed = [order.pack(bits, preset.rows), lut_group.pack_terms(codes, preset.rows), *bias]
    return columns, x, packed, [bits, codes, *bias]


def case_lut_group(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    columns, x, packed, plain = _grouped(s, rng, preset)
    form = form_of(s)
    built = lut.reference_build(x, form, columns)
    return Case(
        lambda t, e, p, a, *bias: lut_group.query(t, e, p, a, s.outputs, columns, form, *bias),
        [*built, *packed],
        lut_group.reference_query(*built, *plain[:2], columns, form, *plain[2:]),
    )


def case_gemm_group(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    columns, x, packed, plain = _grouped(dataclasses.replace(s, terms=1), rng, preset)
    return Case(
        lambda v, p, a, *bias: lut_group.product(v, p, a, s.outputs, columns, *bias),
        [x, *packed],
        lut_group.reference_product(x, *plain[:2], columns, *plain[2:]),
        symbolic=(0,),
    )


def case_lut_float_query(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    tables = lut_float.reference_build(numbers(rng, s.rows, s.inputs))
    packed, plain = _separable(s, rng, preset)
    return Case(
        lambda t, p, c, r, *bias: lut_float.query(t, p, c, r, s.outputs, *bias),
        [tables, *packed],
        lut_float.reference_query(tables, *plain),
    )


def case_gemm_planes(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x = numbers(rng, s.rows, s.inputs)
    packed, plain = _separable(s, rng, preset)
    return Case(
        lambda v, p, c, r, *bias: gemm.planes_product(v, p, c, r, s.outputs, *bias),
        [x, *packed],
        gemm.reference_planes(x, *plain),
        symbolic=(0,),
    )


def case_gemm_fixed(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    operands = lut.reference_fix(activations(s, rng), form_of(s))
    packed, plain = _separable(s, rng, preset)
    expected = gemm.reference_fixed(*operands, *plain)
    tolerance = 1e-6 * np.abs(expected).max()  # spans are added as float32
    return Case(
        lambda q, e, p, c, r, *bias: gemm.fixed_product(q, e, p, c, r, s.outputs, *bias),
        [*operands, *packed],
        expected,
        tolerance,
        symbolic=(0, 1),
    )


def _block(
    function: Callable[..., Any], s: Shape, rng: np.random.Generator, preset: Backend
) -> Case:
    rows, columns = s.block()
    x, bits, bias = numbers(rng, s.rows, s.inputs), planes(rng, s), biases(rng, s)
    grid = (s.bits, -(-s.outputs // rows), -(-s.inputs // columns))
    codes = term_bytes(rng, *grid, s.terms)
    return Case(
        lambda v, p, a, *bias: function(v, p, a, s.outputs, rows, columns, *bias),
        [x, order.pack(bits, preset.rows), codes, *bias],
        lut_block.reference_query(x, bits, codes, rows, columns, *bias),
        symbolic=(0,) if function is lut_block.product else (),
    )


def case_lut_block(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    return _block(lut_block.query, s, rng, preset)


def case_gemm_block(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    return _block(lut_block.product, s, rng, preset)


def _stored(s: Shape, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    raw = from_float32(numbers(rng, s.outputs, s.inputs), s.dtype)
    scale = [np.exp2(rng.integers(-2, 2, s.outputs)).astype(np.float32)]
    return raw, scale if s.dtype == "I8" else []


def _dense(
    function: Callable[..., Any], s: Shape, rng: np.random.Generator, preset: Backend
) -> Case:
    x = numbers(rng, s.rows, s.inputs)
    raw, scale = _stored(s, rng)
    bias = biases(rng, s) if scale else []
    return Case(
        lambda v, table, *more: function(v, table, s.outputs, *more),
        [x, dense.pack_rows(raw, preset.lanes), *scale, *bias],
        dense.reference_dense(x, raw, s.dtype, *scale, *bias),
        symbolic=(0,) if function is gemm.dense_product else (),
    )


def case_dense(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    return _dense(dense.multiply, s, rng, preset)


def case_gemm_dense(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    return _dense(gemm.dense_product, s, rng, preset)


def case_embed(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    ids = rng.integers(0, s.outputs, s.rows).astype(np.int32)
    raw, scale = _stored(s, rng)
    return Case(
        lambda i, table, *scale: dense.embed(i, table, s.inputs, *scale),
        [ids, dense.pack_rows(raw, preset.lanes), *scale],
        dense.reference_embed(ids, raw, s.dtype, *scale),
        symbolic=(0,),
    )


def case_rms_norm(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x, w = rng.standard_normal((2, s.rows, s.inputs)).astype(np.float32)
    return Case(
        lambda v, weight: elementwise.rms_norm(v, weight, 1e-5),
        [x, w[0]],
        elementwise.reference_rms_norm(x, w[0], 1e-5),
        tolerance=1e-5,
        symbolic=(0,),
    )


def beside(s: Shape, rng: np.random.Generator, *parts: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return the parts side by side, as a stack of linears leaves them, and where each begins."""
    gaps = [numbers(rng, s.rows, s.seed % 3) for _ in parts]
    columns = [array for pair in zip(gaps, parts, strict=True) for array in pair]
    starts = np.cumsum([0, *(array.shape[1] for array in columns)])[1::2]
    return np.concatenate(columns, axis=1), [int(start) for start in starts]


def function_of(s: Shape) -> str:
    return sorted(activation.FUNCTIONS)[(s.seed + s.terms) % len(activation.FUNCTIONS)]


def case_activate_mul(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    gate, up = rng.standard_normal((2, s.rows, s.inputs)).astype(np.float32) * 30
    name = function_of(s)
    expected = activation.reference_activate_mul(gate, up, name)
    # gelu's mass outside is right to 1.5e-7, and counts where |gate| is at most 6
    tolerance = max(1e-5, 1.5e-7 * 6 * float(np.abs(up).max()) if name == "gelu" else 0)
    if s.bias:  # both in one tensor
        both, starts = beside(s, rng, up, gate)
        compute = lambda g: activation.activate_mul(g, g, name, s.inputs, starts[1], starts[0])
        return Case(compute, [both], expected, tolerance, symbolic=(0,))
    compute = lambda g, u: activation.activate_mul(g, u, name, s.inputs)
    return Case(compute, [gate, up], expected, tolerance, symbolic=(0, 1))


def case_activate(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x, name = rng.standard_normal((s.rows, s.inputs)).astype(np.float32) * 4, function_of(s)
    stacked, (_, start) = beside(s, rng, x[:, ::2], x)
    compute = lambda v: activation.activate(v, name, s.inputs, start)
    expected = activation.reference_activate(x, name)
    return Case(compute, [stacked], expected, tolerance=2e-6, symbolic=(0,))


def case_soft_cap(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x = rng.standard_normal((s.rows, s.inputs)).astype(np.float32) * 40
    compute = lambda v: activation.soft_cap(v, 30.0)
    expected = activation.reference_soft_cap(x, 30.0)
    return Case(compute, [x], expected, tolerance=2e-5, symbolic=(0,))


def case_route(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    count = s.outputs % 9 + 1
    scores = rng.integers(-3, 4, (s.rows, count)).astype(np.float32) * 1.5  # many are equal
    chosen = s.inputs % count + 1
    compute = lambda v: experts.route(v, chosen)
    return Case(
        compute, [scores], experts.reference_route(scores, chosen), tolerance=1e-6, symbolic=(0,)
    )


def case_mix(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    routes = np.maximum(rng.standard_normal((s.rows, s.bits)), 0).astype(np.float32)
    outputs = rng.standard_normal((s.bits, s.rows, s.inputs)).astype(np.float32)
    outputs[routes.T == 0] = np.nan  # of no weight: never read
    expected = experts.reference_mix(routes, *outputs)
    rows = tuple(range(s.bits + 1))
    return Case(experts.mix, [routes, *outputs], expected, tolerance=1e-6, symbolic=rows)


def case_layer_norm(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x, w, b = rng.standard_normal((3, s.rows, s.inputs)).astype(np.float32)
    return Case(
        lambda v, weight, bias: elementwise.layer_norm(v, weight, bias, 1e-5),
        [x + 2, w[0], b[0]],
        elementwise.reference_layer_norm(x + 2, w[0], b[0], 1e-5),
        tolerance=1e-4,
        symbolic=(0,),
    )


def case_scale(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x = rng.standard_normal((s.rows, s.inputs)).astype(np.float32)
    compute = lambda v: elementwise.scale(v, 25.3)
    return Case(compute, [x], elementwise.reference_scale(x, 25.3), symbolic=(0,))


def case_add_positions(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    x = rng.standard_normal((s.rows, s.inputs)).astype(np.float32)
    table = rng.standard_normal((s.outputs + 2, s.inputs)).astype(np.float32)
    positions = rng.integers(0, s.outputs, s.rows).astype(np.int32)
    compute = lambda v, p, t: elementwise.add_positions(v, p, t, 2)
    expected = elementwise.reference_add_positions(x, positions, table, 2)
    return Case(compute, [x, positions, table], expected, symbolic=(0, 1))


def spread(s: Shape, size: int) -> heads.Layout:
    """Return heads of a size among others: side by side, or in runs."""
    count = s.bits * s.terms
    run = 0 if s.bias else s.terms  # divides count
    return heads.Layout(count, size, s.seed % 3, run, (s.terms + 2) * size if run else 0)


def among(rng: np.random.Generator, s: Shape, layout: heads.Layout) -> np.ndarray:
    columns = int(layout.columns().max()) + 1 + s.seed % 5
    return rng.standard_normal((s.rows, columns)).astype(np.float32)


def case_take_heads(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    layout = spread(s, s.inputs)
    x = among(rng, s, layout)
    compute = lambda v: heads.take_heads(v, layout)
    return Case(compute, [x], heads.reference_take_heads(x, layout), symbolic=(0,))


def case_head_norm(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    layout = spread(s, s.inputs)
    width = s.inputs * (layout.heads if s.symbolic else 1)
    x, w = among(rng, s, layout), rng.standard_normal(width).astype(np.float32)
    compute = lambda v, weight: heads.head_norm(v, weight, 1e-5, layout)
    expected = heads.reference_head_norm(x, w, 1e-5, layout)
    return Case(compute, [x, w], expected, tolerance=1e-5, symbolic=(0,))


def case_add(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    left, right = rng.standard_normal((2, s.rows, s.inputs)).astype(np.float32)
    return Case(elementwise.add, [left, right], np.add(left, right), symbolic=(0, 1))


def case_rope_angles(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    positions = rng.integers(0, 5000, s.rows).astype(np.int32)
    frequencies = elementwise.rope_frequencies(2 * s.inputs, 1e4)
    expected = elementwise.reference_rope_angles(positions, frequencies)
    compute = elementwise.rope_angles
    return Case(compute, [positions, frequencies], expected, tolerance=1e-5, symbolic=(0,))


def case_rope(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    layout = spread(s, 2 * s.inputs + 2 * (s.seed % 2))  # the last two numbers do not turn
    x = among(rng, s, layout)
    angles = rng.standard_normal((s.rows, 2, s.inputs)).astype(np.float32)
    return Case(
        lambda v, a: heads.rope(v, a, layout),
        [x, angles],
        heads.reference_rope(x, angles, layout),
        tolerance=1e-5,
        symbolic=(0, 1),
    )


def _read_memory(op: str, s: Shape, rng: np.random.Generator) -> Case:
    runs, columns = read_memory.SHAPES[op]
    words = rng.integers(0, 2**32, (s.rows, runs, s.inputs, columns), dtype=np.uint32)
    return Case(read_memory.read, [words], read_memory.reference(words), symbolic=(0,))


def case_read_memory(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    return _read_memory("read_memory", s, rng)


def case_read_memory_ahead(s: Shape, rng: np.random.Generator, preset: Backend) -> Case:
    return _read_memory("read_memory_ahead", s, rng)


CASES: dict[str, Callable[[Shape, np.random.Generator, Backend], Case]] = {
    name.removeprefix("case_"): value for name, value in globals().items() if name[:5] == "case_"
}


def test_every_operator_has_a_case() -> None:
    files = [module.name for module in pkgutil.iter_modules(ops.__path__)]
    modules = [importlib.import_module(f"{ops.__name__}.{file}") for file in files]
    names = {name for module in modules for name in module.REFERENCES}
    assert names == set(CASES) | TIR_OPS | GPU_OPS


shapes = st.builds(
    Shape,
    rows=st.integers(1, 4),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 140),
    bits=st.integers(1, bcq.MAX_BITS),
    terms=st.integers(1, 3),
    bias=st.booleans(),
    symbolic=st.booleans(),
    dtype=st.sampled_from(sorted(dense.RAW_DTYPES)),
    form=st.sampled_from(FORMATS),
    seed=st.integers(0, 999),
)


def check(op: str, s: Shape, target: Backend) -> None:
    """Compile an operator for drawn operands and compare every output with the reference's."""
    case = CASES[op](s, np.random.default_rng(s.seed), target)
    symbolic = case.symbolic if s.symbolic else ()
    found = kernels.run_op(op, case.compute, case.arrays, symbolic=symbolic, preset=target)
    if isinstance(case.expected, list):
        compare(found, case.expected, case.tolerance)
    else:
        compare([found], [case.expected], case.tolerance)


def compare(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    """Compare what an operator computed with the reference, output by output."""
    for array, reference in zip(found, expected, strict=True):
        assert array.dtype == reference.dtype
        if tolerance:
            np.testing.assert_allclose(array, reference, tolerance, tolerance)
        else:
            np.testing.assert_array_equal(array, reference)


@pytest.mark.parametrize("preset", kernels.PRESETS)
@pytest.mark.parametrize("op", sorted(CASES))
@example(s=Shape())
@example(s=Shape(2, 31, 33, 2, 2, True, True, "BF16", "column-wise"))
@example(s=Shape(3, 37, 101, 3, 3, False, True, "I8", "block-wise"))
@example(s=Shape(4, 64, 64, 4, 3, True, False, "F16", "odd"))
@settings(
    max_examples=2,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(s=shapes)
def test_compiled_equals_reference(op: str, preset: str, s: Shape) -> None:
    check(op, s, backend.load(preset))


@pytest.mark.parametrize(
    "op", ["gemm_planes", "gemm_fixed", "gemm_block", "gemm_group", "gemm_dense"]
)
def test_one_compiled_gemm_serves_every_number_of_rows(op: str) -> None:
    preset = kernels.PRESETS[0]
    shape = Shape(13, 19, 70, 3, 2, symbolic=True)
    case = CASES[op](shape, np.random.default_rng(1), backend.load(preset))
    run = kernels.compile_op(op, case.compute, case.arrays, symbolic=case.symbolic, preset=preset)
    for rows in (1, 2, 5, 6, 7, 12, 13):
        cut = (a[:rows] if i in case.symbolic else a for i, a in enumerate(case.arrays))
        np.testing.assert_allclose(run(*cut), case.expected[:rows], rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("preset", kernels.PRESETS)
@pytest.mark.parametrize("op", ["lut_float_query", "gemm_planes", "dense"])
def test_real_activations(op: str, preset: str) -> None:
    # rounding and the order of sums enter here: the bound is in units of the magnitudes summed
    shape, target = Shape(2, 50, 500, 3, 3, dtype="BF16"), backend.load(preset)
    case = CASES[op](shape, np.random.default_rng(2), target)
    rng = np.random.default_rng(2)  # draws the same operands again, in the canonical order
    x = numbers(rng, 2, 500)
    if op == "dense":
        raw = _stored(shape, rng)[0]
        expected = lambda v: dense.reference_dense(v, raw, "BF16")
    else:
        plain = _separable(shape, rng, target)[1]
        expected = lambda v: gemm.reference_planes(v, *plain)
    np.testing.assert_array_equal(case.expected, expected(x))  # the same operands indeed
    x = rng.standard_normal((2, 500)).astype(np.float32)
    arrays = [lut_float.reference_build(x) if op == "lut_float_query" else x, *case.arrays[1:]]
    found = kernels.run_op(op, case.compute, arrays, preset=preset)
    tolerance = 1e-5 * np.abs(expected(x)).max()
    np.testing.assert_allclose(found, expected(x), rtol=0, atol=tolerance)
