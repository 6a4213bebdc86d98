"""Look-ups in whole numbers: exact on every kernel text, whatever the activations; errors of the formats.

`whole` says what the integers are without the tables of `ops/lut.py`: a second opinion.
"""

from collections.abc import Iterator

import kernels
import numpy as np
import pytest
import stand_ins
import test_ops
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shiftadd_tvm import backend, bcq, powers
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import lut, lut_float, shift
from shiftadd_tvm.ops import planes as order

TARGETS = [*(backend.load(name) for name in kernels.PRESETS), *stand_ins.targets()]
FORMS = list(lut.FORMATS.values())
ONE, MINUS_ONE = powers.EXPONENT_BIAS, powers.EXPONENT_BIAS | powers.NEGATIVE
Array = np.ndarray

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
pytestmark = pytest.mark.skipif(not TARGETS, reason="no preset runs on this machine")


@pytest.fixture(autouse=True, scope="module")
def _stand_ins() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        stand_ins.put_in(patch)
        yield


def whole(x: Array, form: lut.Format) -> tuple[Array, Array]:
    """Return q (M, K) int64 and the exponents e (M,) with x = 2^e · q but for the rounding: |q| stays
    below 2^bits, e is the least that allows it from -64 on. A row for which e would exceed 64 is NaN,
    here e = 1000."""
    peak = np.abs(x).max(axis=1).astype(np.float64)
    finite = np.isfinite(peak)
    exponents = np.maximum(np.frexp(np.where(finite, peak, 0))[1] - form.bits, -64)
    finite &= exponents <= 64
    q = np.rint(np.ldexp(np.where(finite[:, None], x, 0).astype(np.float64), -exponents[:, None]))
    top = 2**form.bits - 1
    return np.clip(q, -top, top).astype(np.int64), np.where(finite, exponents, 1000)


def products(q: Array, exponents: Array, planes: Array) -> Array:
    """Return 2^e · (planes ±1 (N, K) · q) float32, rounded once; NaN for the rows that have no e."""
    signs = bcq.unpack_planes(planes, q.shape[1]).astype(np.int64)
    sums = (q @ signs.T).astype(np.float32)
    scaled = np.ldexp(sums, np.minimum(exponents, 64)[:, None].astype(np.int32))
    return np.where(exponents[:, None] == 1000, np.float32(np.nan), scaled)


def looked_up(x: Array, planes: Array, form: lut.Format, target: Backend) -> Array:
    """Return what `lut_build` and `lut_query`, compiled, give for one plane without scales."""
    outputs = planes.shape[0]
    built = kernels.run_op("lut_build", lambda v: lut.build(v, form), [x], preset=target)
    levels = np.full((order.row_blocks(outputs, target.rows), 1, 1), ONE, np.uint8)
    rows = order.pack_row_terms(np.full((outputs, 1), ONE, np.uint8), target.rows)
    query = lambda *operands: lut.query(*operands, outputs, form)
    packed = [order.pack(planes[None], target.rows), levels, rows]
    # as many tokens at once as decode has: the kernel's text grows with them
    parts = [[array[m : m + 4] for array in built] for m in range(0, len(x), 4)]
    run = kernels.compile_op("lut_query", query, [*parts[0], *packed], preset=target)
    found = np.concatenate([run(*part, *packed) for part in parts])
    assert found.dtype == np.float32
    return found


large = st.builds(
    test_ops.Shape,
    rows=st.sampled_from([1, 2, 4]),
    outputs=st.integers(1, 300),
    inputs=st.integers(1, 3000),
    bits=st.integers(1, bcq.MAX_BITS),
    terms=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 999),  # a multiple of 3: int8
)


@every_target
@settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(shape=large)
def test_drawn_shapes_equal_the_reference(target: Backend, shape: test_ops.Shape) -> None:
    test_ops.check("lut_query", shape, target)


SHAPES = {
    "two chunks, one input over": test_ops.Shape(1, 64, 1025, 2, 2, seed=1),
    "three chunks, whole blocks": test_ops.Shape(2, 256, 3072, 3, 3, True, seed=2),
    "three chunks, 8 bits, all tails": test_ops.Shape(4, 101, 2077, 4, 2, True, seed=3),
    "a chunk, 8 bits, whole blocks": test_ops.Shape(4, 128, 1024, 1, 1, seed=6),
    "less than a step": test_ops.Shape(2, 33, 7, 4, 2, True, seed=4),
}


@every_target
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_with_edges_equal_the_reference(target: Backend, name: str) -> None:
    test_ops.check("lut_query", SHAPES[name], target)


@pytest.mark.parametrize("target", stand_ins.targets(), ids=lambda target: target.name)
@pytest.mark.parametrize(
    "op", ["lut_build", "lut_float_query", "gemm_planes", "gemm_fixed", "gemm_block"]
)
def test_stand_ins_compute_the_rest_too(target: Backend, op: str) -> None:
    """Tables and prefill's panels for row blocks of 64, and the float look-ups."""
    for shape in (test_ops.Shape(3, 70, 101, 3, 2, True), test_ops.Shape(1, 128, 1100, 2, 1)):
        test_ops.check(op, shape, target)


@every_target
@every_form
def test_integers_are_the_definition(target: Backend, form: lut.Format) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((4, 2500)) * np.array([[1e-9], [1], [300], [1e15]])
    x = x.astype(np.float32)
    planes = bcq.pack_planes(rng.random((77, 2500)) < 0.5)
    expected = products(*whole(x, form), planes)
    np.testing.assert_array_equal(looked_up(x, planes, form, target), expected)


def test_no_sum_can_overflow() -> None:
    for form in FORMS:
        largest = order.GROUP * (2**form.bits - 1)
        assert largest < 2 ** sum(form.digit_bits)
        for place, bits in form.digits:
            digit = min(2**bits - 1, largest >> place)
            assert bits == 8 or 2 * digit <= 255  # two look-ups are added in bytes
            assert 2 * order.CHUNK * digit <= 65535  # and all of a chunk in 16 bits


# (format, magnitudes of each group of 4): what fills an entry's digits
FULL = {
    "int16, the largest entry": ("int16", (4095, 4095, 4095, 4095)),
    "int16, the largest low digit": ("int16", (4095, 4095, 4095, 3970)),
    "int8, the largest entry": ("int8", (63, 63, 63, 63)),
}


@every_target
@pytest.mark.parametrize("name", FULL)
def test_chunks_full_of_the_largest_digits(target: Backend, name: str) -> None:
    """The row that agrees with every sign looks up nothing but the fullest digits."""
    form, magnitudes = lut.FORMATS[FULL[name][0]], FULL[name][1]
    entry, (low, *high) = sum(magnitudes), form.digits
    assert entry & 127 == 127 or entry == 4 * (2**form.bits - 1), (low, high)
    inputs, rng = 3 * order.CHUNK * order.STEP, np.random.default_rng(8)
    signs = rng.random(inputs) < 0.5
    x = np.where(signs, 1, -1) * np.resize(magnitudes, inputs).astype(np.float32)
    flags = rng.random((2 * target.rows + 3, inputs)) < 0.5
    flags[:2], flags[target.rows : target.rows + 2] = [signs, ~signs], [~signs, signs]
    planes = bcq.pack_planes(flags)
    found = looked_up(x.astype(np.float32)[None], planes, form, target)[0]
    assert found[0] == found[target.rows + 1] == np.abs(x).sum() == -found[1]
    np.testing.assert_array_equal(found, np.where(flags, x, -x).sum(axis=1, dtype=np.float64))


def hostile_rows(form: lut.Format, rng: np.random.Generator, inputs: int) -> Array:
    """Return rows at the ends of what floats are; the bounds are those of docs/operators.md."""
    end = {"int16": 2.0**76, "int8": 2.0**70}[form.name]
    plain = rng.uniform(-1, 1, inputs)
    rows = np.stack(
        [plain * scale for scale in (0.0, 1e-40, 1.0, 2.0**-52, 2.0**-60)] + [plain] * 7
    )
    rows = rows.astype(np.float32)
    rows[2, ::3] = np.resize(
        np.array([1e-40, -1e-45, -0.0, 2.0**-126], np.float32), len(rows[2, ::3])
    )
    rows[3, 5] = rows[4, 5] = 0
    rows[3, 6], rows[4, 6] = 2.0**-52, 2.0**-64 * 2048.5  # the last exponent, and below it
    largest = np.nextafter(np.float32(end), np.float32(0))
    for row, value in enumerate([largest, -largest, end, -end, np.inf, -np.inf, np.nan], 5):
        rows[row, -1 - row] = value
    return rows


@every_target
@every_form
def test_hostile_rows_keep_to_themselves(target: Backend, form: lut.Format) -> None:
    rng = np.random.default_rng(9)
    x = hostile_rows(form, rng, 41)
    planes = bcq.pack_planes(rng.random((70, 41)) < 0.5)
    q, exponents = whole(x, form)
    lost = [bool(value) for value in exponents == 1000]
    assert lost == [False] * 7 + [True] * 5  # from 2^76 (2^70) on: NaN, not a wrong number
    expected = products(q, exponents, planes)
    found = looked_up(x, planes, form, target)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(found[lost]).all() and np.isfinite(found[:7]).all()
    assert not found[:2].any() and np.abs(found[2:7]).max(axis=1).all()
    fixed, exponent = kernels.run_op("lut_fix", lambda v: lut.fix(v, form), [x], preset=target)
    np.testing.assert_array_equal(fixed[:, : x.shape[1]], q)
    assert (exponent[:, 0] == lut.NOT_FINITE).tolist() == lost
    rounded = kernels.run_op("lut_round", lambda v: lut.rounded(v, form), [x], preset=target)
    values = np.ldexp(q.astype(np.float32), np.minimum(exponents, 64)[:, None].astype(np.int32))
    values[lost] = np.nan
    np.testing.assert_array_equal(rounded, values)


@every_target
def test_float_look_ups_pass_inf_and_nan_to_their_row_only(target: Backend) -> None:
    rng, n, k = np.random.default_rng(3), 19, 1100
    x = rng.integers(-4, 5, (3, k)).astype(np.float32)
    x[0, 7], x[1, 1039] = np.inf, np.nan
    planes = bcq.pack_planes(rng.random((1, n, k)) < 0.5)
    levels, rows = np.full((1, 1, 1), ONE, np.uint8), np.full((n, 1), MINUS_ONE, np.uint8)
    tables = lut_float.reference_build(x)
    packed = [order.pack(planes, target.rows), levels, order.pack_row_terms(rows, target.rows)]
    query = lambda *operands: lut_float.query(*operands, n)
    found = kernels.run_op("lut_float_query", query, [tables, *packed], preset=target)
    with np.errstate(invalid="ignore"):
        expected = lut_float.reference_query(tables, planes, levels[0], rows)
    np.testing.assert_array_equal(found, expected)
    signs = bcq.unpack_planes(planes[0], k)
    np.testing.assert_array_equal(found[0], -np.inf * signs[:, 7])
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[2], -(signs @ x[2]))


ERRORS = {"int16": 1e-3, lut_float.NAME: 1e-6, "int8": 5e-2}  # of the largest output


def rotated(rng: np.random.Generator, inputs: int) -> Array:
    """Return two rows of activations with outliers, rotated, which spreads them."""
    x = rng.standard_normal((2, inputs)) * np.exp(rng.standard_normal((2, inputs)))
    x[:, :4] *= 50
    return bcq.rotate(x.astype(np.float32), bcq.Rotation(1024, bcq.random_signs(inputs, 5)))


@every_target
@pytest.mark.parametrize("activations", ERRORS)
def test_errors_of_the_formats(target: Backend, activations: str) -> None:
    rng, n, k, bits = np.random.default_rng(10), 200, 4096, 3
    x, planes = rotated(rng, k), bcq.pack_planes(rng.random((bits, n, k)) < 0.5)
    levels = powers.round_to_terms(np.exp2(-np.arange(bits)) * rng.uniform(0.8, 1.2, bits), 3)
    rows = powers.round_to_terms(rng.uniform(0.5, 2, n), 2)
    scale = lambda codes: shift.reference_terms(np.ones((), np.float32), codes).astype(np.float64)
    signs = bcq.unpack_planes(planes, k).astype(np.float64)
    weights = np.tensordot(scale(levels), signs, axes=1) * scale(rows)[:, None]
    expected = x.astype(np.float64) @ weights.T
    packed = [
        order.pack(planes, target.rows),
        np.repeat(levels[None], order.row_blocks(n, target.rows), axis=0),
        order.pack_row_terms(rows, target.rows),
    ]
    if activations == lut_float.NAME:
        built = [kernels.run_op("lut_float_build", lut_float.build, [x], preset=target)]
        op, query = "lut_float_query", lambda *operands: lut_float.query(*operands, n)
    else:
        form = lut.FORMATS[activations]
        built = kernels.run_op("lut_build", lambda v: lut.build(v, form), [x], preset=target)
        op, query = "lut_query", lambda *operands: lut.query(*operands, n, form)
    found = kernels.run_op(op, query, [*built, *packed], preset=target)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error <= ERRORS[activations]
