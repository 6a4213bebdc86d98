"""Operators where their definitions are sharp: exact bits, zeros, subnormals, Inf, NaN."""

import kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

from shiftadd_tvm import backend, bcq, powers
from shiftadd_tvm.ops import elementwise, gemm, hadamard, lut, lut_block, lut_float, shift
from shiftadd_tvm.ops import planes as order

SMALLEST_NORMAL = 2.0**-126
HOSTILE = np.array(
    [0.0, -0.0, 1e-45, -1e-40, SMALLEST_NORMAL, -SMALLEST_NORMAL, 1.0, -1.5, 3.4e38, -3.4e38]
    + [np.inf, -np.inf, np.nan, 1e-30, 2.0**63, 2.0**-63],
    np.float32,
)


def columns_of(codes: np.ndarray) -> np.ndarray:
    """Return the terms of columns (K, P) as kernels read them, (P, K)."""
    return np.ascontiguousarray(codes.T)


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def scalar_shift(value: float, exponent: int) -> float:
    """Return shift as its definition reads, with ldexp: subnormals flushed on both sides."""
    if np.isnan(value) or np.isinf(value):
        return value
    exact = 0.0 if abs(value) < SMALLEST_NORMAL else float(np.ldexp(float(value), exponent))
    if abs(exact) < SMALLEST_NORMAL:
        return float(np.copysign(0.0, value))
    return exact if abs(exact) < 2.0**128 else float(np.copysign(np.inf, value))


def test_published_vectors() -> None:
    values, exponents, expected = np.array(shift.TEST_VECTORS, np.int64).T
    x = values.astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(bits(shift.reference_shift(x, exponents)), expected)


@pytest.mark.parametrize("preset", kernels.PRESETS)
def test_published_vectors_compiled(preset: str) -> None:
    values, exponents, expected = np.array(shift.TEST_VECTORS, np.int64).T
    x = values.astype(np.uint32).view(np.float32)[None]
    codes = (exponents + powers.EXPONENT_BIAS).astype(np.uint8)[:, None]
    found = kernels.run_op("shift", shift.scale_columns, [x, columns_of(codes)], preset=preset)
    np.testing.assert_array_equal(bits(found)[0], expected)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.floats(width=32), st.integers(-63, 63))
def test_shift_is_ldexp_with_flush(value: float, exponent: int) -> None:
    found = shift.reference_shift(np.array([value], np.float32), np.array([exponent]))
    if not np.isnan(value):  # a NaN's payload is tested by the vectors
        assert bits(found)[0] == bits(np.array([scalar_shift(value, exponent)]))[0]


@pytest.mark.parametrize("preset", kernels.PRESETS)
def test_every_term_byte_times_every_hostile_value(preset: str) -> None:
    codes = np.arange(256, dtype=np.uint8)[:, None]
    x = np.broadcast_to(HOSTILE[:, None], (len(HOSTILE), 256)).copy()
    found = kernels.run_op("shift", shift.scale_columns, [x, columns_of(codes)], preset=preset)
    np.testing.assert_array_equal(bits(found), bits(shift.reference_terms(x, codes)))
    absent = (codes[:, 0] & powers.EXPONENT_MASK) == 0
    assert not bits(found)[:, absent].any()  # an absent term is +0 even for NaN


@pytest.mark.parametrize("preset", kernels.PRESETS)
def test_sums_of_terms_of_hostile_values(preset: str) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (512, 3)).astype(np.uint8)
    x = np.resize(HOSTILE, (3, 512))
    found = kernels.run_op("shift", shift.scale_columns, [x, columns_of(codes)], preset=preset)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = shift.reference_terms(x, codes)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("preset", kernels.PRESETS)
def test_hadamard_keeps_hostile_values_in_their_block(preset: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-4, 5, (2, 64)).astype(np.float32)
    clean, signs = x.copy(), bcq.random_signs(64, 3)
    x[0, 5], x[0, 20], x[1, 33] = np.nan, np.inf, -0.0
    x[1, 48:] = 1e-40  # subnormal: the final shift flushes it
    found = kernels.run_op(
        "hadamard", lambda v, d: hadamard.rotate(v, d, 16), [x, signs], preset=preset
    )
    expected = hadamard.reference_rotate(clean, signs, 16)
    assert np.isnan(found[0, :16]).all() and np.isinf(found[0, 16:32]).all()
    np.testing.assert_array_equal(found[0, 32:], expected[0, 32:])
    np.testing.assert_array_equal(found[1, :32], expected[1, :32])
    assert not found[1, 48:].any()


@pytest.mark.parametrize("preset", kernels.PRESETS)
def test_lut_float_build_of_hostile_values_is_bit_exact(preset: str) -> None:
    x = np.stack([np.resize(HOSTILE, 33), np.random.default_rng(2).permutation(33) * 9e36])
    x = x.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = lut_float.reference_build(x)
    found = kernels.run_op("lut_float_build", lut_float.build, [x], preset=preset)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("preset", kernels.PRESETS)
@pytest.mark.parametrize("form", lut.FORMATS.values(), ids=lut.FORMATS)
def test_whole_numbers_of_hostile_values_are_bit_exact(form: lut.Format, preset: str) -> None:
    """A hostile value in each row, beside ones that its format holds; see also test_lut.py."""
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (len(HOSTILE), 33)).astype(np.float32)
    x[np.arange(len(x)), rng.integers(0, 33, len(x))] = HOSTILE
    x = np.concatenate([x, np.resize(HOSTILE, (1, 33))])
    found = kernels.run_op("lut_build", lambda v: lut.build(v, form), [x], preset=preset)
    for array, expected in zip(found, lut.reference_build(x, form), strict=True):
        np.testing.assert_array_equal(array, expected)
    found = kernels.run_op("lut_fix", lambda v: lut.fix(v, form), [x], preset=preset)
    for array, expected in zip(found, lut.reference_fix(x, form), strict=True):
        np.testing.assert_array_equal(array, expected)
    rounded = kernels.run_op("lut_round", lambda v: lut.rounded(v, form), [x], preset=preset)
    np.testing.assert_array_equal(rounded, lut.reference_rounded(x, form))


@pytest.mark.skipif(not kernels.PRESETS, reason="no preset runs on this machine")
def test_vectorizable_exp() -> None:
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    x = np.concatenate([x, np.array([0, -0.0, -1e30, 1e30, -88, 100], np.float32)])
    compute = lambda v: te.compute(v.shape, lambda i: elementwise.exp(v[i]), name="y")
    expected = np.exp(np.clip(x, -87, 88).astype(np.float64))
    np.testing.assert_allclose(kernels.run_op("exp", compute, [x]), expected, rtol=2e-7)


def weight(
    rng: np.random.Generator, n: int, k: int, scales: bcq.SeparableScales | bcq.BlockScales
) -> bcq.BCQWeight:
    block = bcq.rotation_block(k, 64)
    rotation = bcq.Rotation(block, bcq.random_signs(k, 4)) if block > 1 else None
    return bcq.BCQWeight((n, k), bcq.pack_planes(rng.random((3, n, k)) < 0.5), scales, rotation)


def _shifted(inputs: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return activations as look-ups get them, a linear's operands, and the dense product."""
    rng, n = np.random.default_rng(5), 21
    terms = [powers.round_to_terms(rng.uniform(0.5, 2, size), 2) for size in (n, inputs, 3)]
    w = weight(rng, n, inputs, bcq.SeparableScales(*terms))
    assert isinstance(w.scales, bcq.SeparableScales)
    x = rng.standard_normal((3, inputs)).astype(np.float32)
    rotated = x if w.rotation is None else bcq.rotate(x, w.rotation)
    shifted = shift.reference_terms(rotated, w.scales.column_terms)
    operands = [w.planes, w.scales.plane_terms, w.scales.row_terms]
    return shifted, operands, x.astype(np.float64) @ bcq.dequantize(w).astype(np.float64).T


@pytest.mark.parametrize("inputs", [1, 31, 33, 64, 80])
def test_lut_gemm_and_dense_agree(inputs: int) -> None:
    shifted, operands, expected = _shifted(inputs)
    looked_up = lut_float.reference_query(lut_float.reference_build(shifted), *operands)
    tolerance = 1e-5 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(looked_up, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(gemm.reference_planes(shifted, *operands), looked_up, 0, tolerance)


@pytest.mark.parametrize("inputs", [1, 31, 33, 64, 80])
@pytest.mark.parametrize(("name", "error"), [("int16", 2e-3), ("int8", 1e-1)])
def test_both_phases_hold_the_same_whole_numbers(name: str, error: float, inputs: int) -> None:
    """Decode looks rounded activations up, prefill multiplies them: the same but for float32's sums."""
    form, (shifted, operands, expected) = lut.FORMATS[name], _shifted(inputs)
    largest = max(1.0, np.abs(expected).max())
    looked_up = lut.reference_query(*lut.reference_build(shifted, form), *operands, form)
    multiplied = gemm.reference_fixed(*lut.reference_fix(shifted, form), *operands)
    np.testing.assert_allclose(multiplied, looked_up, rtol=0, atol=1e-6 * largest)
    np.testing.assert_allclose(looked_up, expected, rtol=0, atol=error * largest)


@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (21, 1), (2, 8), (7, 4)])
def test_block_scales_agree_with_dense(rows: int, columns: int) -> None:
    rng, n, k = np.random.default_rng(6), 21, 50
    grid = (3, -(-n // rows), -(-k // columns))
    codes = powers.round_to_terms(rng.uniform(-2, 2, grid), 3)
    w = weight(rng, n, k, bcq.BlockScales(rows, columns, codes))
    x = rng.standard_normal((2, k)).astype(np.float32)
    found = lut_block.reference_query(x, w.planes, codes, rows, columns)
    np.testing.assert_allclose(found, x @ bcq.dequantize(w).T, rtol=0, atol=1e-3)


def _fixed_products(
    preset: str, fixed: np.ndarray, exponent: np.ndarray, planes: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `gemm_fixed` computes with r = 1, compiled and by its reference."""
    target, n = backend.load(preset), planes.shape[1]
    row_terms = np.full((n, 1), powers.EXPONENT_BIAS, np.uint8)
    blocks = order.row_blocks(n, target.rows)
    packed = [
        order.pack(planes, target.rows),
        np.tile(levels, (blocks, 1, 1)),
        order.pack_row_terms(row_terms, target.rows),
    ]
    compute = lambda q, e, p, c, r: gemm.fixed_product(q, e, p, c, r, n)
    given = [fixed, exponent, *packed]
    found = kernels.run_op("gemm_fixed", compute, given, symbolic=(0, 1), preset=preset)
    return found, gemm.reference_fixed(fixed, exponent, planes, levels, row_terms)


@pytest.mark.parametrize("preset", kernels.PRESETS)
def test_fixed_products_of_the_largest_numbers(preset: str) -> None:
    """All 12 bits of c in use and every sum as large as it can be; a row that is not finite."""
    rng, inputs = np.random.default_rng(8), 8 * 48
    levels = (powers.EXPONENT_BIAS - np.arange(12)).reshape(3, 4).T.astype(np.uint8)
    planes = np.full((4, 70, inputs // 8), 255, np.uint8)
    planes[:, 1:64] = rng.integers(0, 256, (4, 63, inputs // 8))
    planes[:, 69] = 0
    fixed = np.full((8, inputs), 4095, np.int16)
    fixed[1] = -4095
    fixed[2:] = rng.integers(-4095, 4096, (6, inputs))
    exponent = np.array([[64, 0, 128, 64, 1, 64, lut.NOT_FINITE, 64]], np.uint32).T
    found, expected = _fixed_products(preset, fixed, exponent, planes, levels)
    assert np.isnan(found[6]).all() and np.isnan(expected[6]).all()
    found, expected = (np.delete(y, 6, axis=0) for y in (found, expected))
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(found - expected) <= 1e-6 * largest).all()


@pytest.mark.parametrize("preset", kernels.PRESETS)
@pytest.mark.parametrize(
    ("levels", "error"),
    [
        ([[0], [0]], 0.0),
        ([[64], [64 - 30]], 2 * 2.0**-11),
        ([[127], [255]], 1e-6),
        ([[1], [129]], 1e-6),
    ],
    ids=["absent", "far apart", "largest", "least"],
)
def test_fixed_products_of_hostile_scales(
    levels: list[list[int]], error: float, preset: str
) -> None:
    rng = np.random.default_rng(9)
    planes = rng.integers(0, 256, (2, 65, 9), np.uint8)
    fixed = rng.integers(-4095, 4096, (7, 72)).astype(np.int16)
    exponent = np.full((7, 1), powers.EXPONENT_BIAS, np.uint32)
    codes = np.array(levels, np.uint8)
    found, expected = _fixed_products(preset, fixed, exponent, planes, codes)
    size = shift.reference_terms(np.ones(1, np.float32), codes)
    bound = error * np.abs(size).max() * np.abs(fixed).sum(axis=1, dtype=np.int64)
    assert (np.abs(found - expected) <= bound[:, None]).all()
