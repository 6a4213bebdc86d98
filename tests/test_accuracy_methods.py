"""Every baseline gives what a plain version of its publication gives, and counts all that it stores."""

import math

import numpy as np
import plain_quantizers as plain
import pytest
import torch

from shiftadd_tvm import block_fit, powers
from shiftadd_tvm.accuracy import method
from shiftadd_tvm.accuracy.group_fit import fit_levels
from shiftadd_tvm.accuracy.incoherence import Incoherent, Orthogonal
from shiftadd_tvm.accuracy.methods import awq, lut_gemm, shiftaddllm_acc
from shiftadd_tvm.error_feedback import block_order, output_error
from shiftadd_tvm.errors import UsageError

METHODS = {name: one for name, one in method.find().items() if name != "llama.cpp-k"}


def run(name: str, weights: np.ndarray, hessian: np.ndarray, bits: int) -> method.Dequantized:
    return method.find()[name].quantize(torch.from_numpy(weights), torch.from_numpy(hessian), bits)


def assert_mostly_equal(found: torch.Tensor, expected: np.ndarray, share: float = 0.99) -> None:
    """Ties and float32 may turn a rare code, which feedback then carries on."""
    close = np.isclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert close.mean() >= share, f"{close.mean():.4f} of the weights agree"


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [64, 128])
def test_rtn_is_the_nearest_point_of_each_group(group: int, bits: int) -> None:
    weights, hessian = plain.inputs(6, 200)
    weights[2] = np.abs(weights[2])  # the grid still holds zero
    weights[3, :group] = 0
    expected = np.zeros_like(weights)
    for n, k in np.ndindex(weights.shape):
        start = k // group * group
        expected[n, k] = plain.uniform(weights[n, k], weights[n, start : start + group], bits)
    np.testing.assert_allclose(run(f"rtn-g{group}", weights, hessian, bits).weights, expected, 1e-5)


@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_is_feedback_around_static_groups(bits: int) -> None:
    weights, hessian = plain.inputs(10, 80)

    def round_column(k: int, now: np.ndarray) -> np.ndarray:
        group = slice(k // 64 * 64, k // 64 * 64 + 64)
        pairs = zip(now[:, k], weights[:, group], strict=True)
        return np.array([plain.uniform(value, row, bits) for value, row in pairs])

    order = list(np.argsort(-np.diag(hessian), kind="stable"))
    expected = plain.feedback(weights, hessian, order, round_column)
    assert_mostly_equal(run("gptq-g64", weights, hessian, bits).weights, expected)


def test_awq_takes_the_best_power_of_the_inputs_sizes() -> None:
    weights, hessian = plain.inputs(12, 96)
    rms, errors, candidates = np.sqrt(np.diag(hessian)), [], []
    for step in range(20):
        scale = rms ** (step / 20)
        scale = np.float16(scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
        scaled = weights * scale
        rounded = np.array([[plain.uniform(v, row, 3) for v in row] for row in scaled]) / scale
        errors.append(np.trace((rounded - weights) @ hessian @ (rounded - weights).T))
        candidates.append(rounded)
    best = int(np.argmin(errors))
    assert best > 0, "the drawn inputs do not need scaling: the test would show nothing"
    found = awq.quantize(torch.from_numpy(weights), torch.from_numpy(hessian), 3)
    assert_mostly_equal(found.weights, candidates[best])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_msfp_boxes_share_the_exponent_of_their_largest(bits: int) -> None:
    weights, hessian = plain.inputs(5, 40)
    weights[1, 16:32] = 0
    weights[2, 0] = 0.25  # a power of two
    expected = np.zeros_like(weights)
    for n, k in np.ndindex(weights.shape):
        box = np.abs(weights[n, k // 16 * 16 : k // 16 * 16 + 16]).max()
        if box:
            step = 2.0 ** (math.floor(math.log2(box)) + 2 - bits)
            code = min(round(abs(weights[n, k]) / step), 2 ** (bits - 1) - 1)
            expected[n, k] = math.copysign(code * step, weights[n, k])
    found = run("msfp", weights, hessian, bits).weights
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("bits", [2, 3])
def test_lut_gemm_alternates_codes_and_half_precision_scales(bits: int) -> None:
    weights, hessian = plain.inputs(3, 200)
    found = lut_gemm.quantize(torch.from_numpy(weights), torch.from_numpy(hessian), bits).weights
    for row, got in zip(weights.astype(np.float64), found.numpy(), strict=True):
        for part in (slice(0, 128), slice(128, 200)):
            expected = plain.binary_coding(row[part], bits, 20)
            assert len(np.unique(got[part])) <= 2**bits
            error, least = (np.square(v - row[part]).sum() for v in (got[part], expected))
            assert error == pytest.approx(least, rel=0.02)


@pytest.mark.parametrize("rounds", [0, 1, 20])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_fit_of_one_group_is_that_of_many(bits: int, rounds: int) -> None:
    rng = np.random.default_rng(bits)
    for values in (rng.standard_normal(96) * 0.02, rng.standard_t(2, 33), np.zeros(8), np.ones(8)):
        groups = values[None]
        _, codes = block_fit.fit_groups(groups, np.ones_like(groups), bits, rounds, 3)
        expected = plain.levels(powers.decode_terms(codes)[0].astype(np.float64))
        np.testing.assert_allclose(fit_levels(values, bits, 3, rounds), expected, 1e-12, 1e-12)


def fitted_levels(values: np.ndarray, bits: int) -> np.ndarray:
    _, codes = block_fit.fit_groups(values[None], np.ones((1, values.size)), bits, 20, 3)
    return plain.levels(powers.decode_terms(codes)[0].astype(np.float64))


@pytest.mark.parametrize("bits", [2, 3])
def test_acc_fits_every_column_as_feedback_left_it(bits: int) -> None:
    weights, hessian = plain.inputs(24, 40)
    order = list(np.argsort(-np.diag(hessian), kind="stable"))
    round_column = lambda k, now: plain.nearest(now[:, k], fitted_levels(now[:, k], bits))
    expected = plain.feedback(weights, hessian, order, round_column)
    assert_mostly_equal(run("shiftaddllm-acc", weights, hessian, bits).weights, expected)


@pytest.mark.parametrize("shape", [(24, 40), (21, 44)])
def test_lat_fits_blocks_when_their_first_column_comes(shape: tuple[int, int]) -> None:
    weights, hessian = plain.inputs(*shape)
    outputs, width = shape
    rows, fitted = -(-outputs // 8), {}
    starts = sorted(range(0, width // 8 * 8, 8), key=lambda k: -np.diag(hessian)[k : k + 8].sum())
    starts += [width // 8 * 8] if width % 8 else []

    def round_column(k: int, now: np.ndarray) -> np.ndarray:
        if k % 8 == 0:
            for start in range(0, outputs, rows):
                values = now[start : start + rows, k : k + 8].T.ravel()
                fitted[start] = fitted_levels(values, 3)
        parts = [plain.nearest(now[s : s + rows, k], fitted[s]) for s in range(0, outputs, rows)]
        return np.concatenate(parts)

    order = [k for start in starts for k in range(start, min(start + 8, width))]
    assert block_order(torch.from_numpy(hessian).diagonal(), 8).tolist() == order
    expected = plain.feedback(weights, hessian, order, round_column)
    assert_mostly_equal(run("shiftaddllm-lat", weights, hessian, 3).weights, expected)


def test_incoherence_is_an_orthogonal_change_of_basis() -> None:
    weights, hessian = (torch.from_numpy(array) for array in plain.inputs(12, 30))
    left = Orthogonal(30, torch.Generator().manual_seed(5))
    matrix = left.apply(torch.eye(30))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(left.undo(left.apply(weights)), weights)
    assert matrix.abs().max() < 0.9  # it mixes
    changed = Incoherent(weights, hessian, 0)
    torch.testing.assert_close(changed.undo(changed.weights), weights, atol=1e-5, rtol=1e-4)
    # a small change costs the same in both bases, apart from the scale of H and what is added to it
    change = 0.01 * torch.randn(12, 30, generator=torch.Generator().manual_seed(1))
    ridge = 0.01 * change.square().sum()
    inside = output_error(change, changed.hessian).sum() - ridge
    outside = output_error(changed.undo(change), hessian).sum()
    flat = output_error(changed.undo(changed.weights), hessian).sum()
    whole = output_error(changed.weights, changed.hessian).sum()
    whole = whole - 0.01 * changed.weights.square().sum()
    torch.testing.assert_close(inside / whole, outside / flat, rtol=1e-3, atol=0)


def test_dense_acc_is_acc_in_the_rotated_basis() -> None:
    weights, hessian = (torch.from_numpy(array) for array in plain.inputs(24, 36))
    rotated = Incoherent(weights, hessian, 0)
    inside = shiftaddllm_acc.quantize(rotated.weights, rotated.hessian, 3)
    found = shiftaddllm_acc.quantize_dense(weights, hessian, 3)
    torch.testing.assert_close(found.weights, rotated.undo(inside.weights))
    plainly = shiftaddllm_acc.quantize(weights, hessian, 3).weights
    errors = [output_error(w - weights, hessian).sum() for w in (found.weights, plainly)]
    assert errors[0] < errors[1]


# N = 20, K = 200: four groups of 64 and two of 128 in a row, thirteen boxes of 16
STORED = {
    "rtn-g64": 3 + 4 * (16 + 3) / 200,
    "rtn-g128": 3 + 2 * (16 + 3) / 200,
    "gptq-g64": 3 + 4 * (16 + 3) / 200,
    "gptq-g128": 3 + 2 * (16 + 3) / 200,
    "awq-g128": 3 + 2 * (16 + 3) / 200 + 16 / 20,
    "lut-gemm-g128": 3 + 2 * 3 * 16 / 200,
    "msfp": 3 + 13 * 8 / 200,
    "shiftaddllm-acc": 3 + 3 * 3 * 8 / 20,
    "shiftaddllm-acc-dense": 3 + 3 * 3 * 8 / 20 + 16 / 20,
    "shiftaddllm-lat": 3 + 25 * 7 * 3 * 3 * 8 / 4000,  # 7 parts of 3 rows, the last one of 2
}


def test_all_that_is_stored_is_counted() -> None:
    weights, hessian = plain.inputs(20, 200)
    found = {name: run(name, weights, hessian, 3).bits for name in METHODS}
    assert found == pytest.approx(STORED)


@pytest.mark.parametrize("name", METHODS)
def test_what_holds_for_every_method(name: str) -> None:
    weights, hessian = (torch.from_numpy(array) for array in plain.inputs(16, 72))
    before, errors = (weights.clone(), hessian.clone()), []
    for bits in METHODS[name].widths:
        found = METHODS[name].quantize(weights, hessian, bits)
        assert torch.equal(found.weights, METHODS[name].quantize(weights, hessian, bits).weights)
        assert found.weights.shape == weights.shape and found.weights.dtype == torch.float32
        errors.append(float(output_error(found.weights - weights, hessian).sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 4
    assert torch.equal(weights, before[0]) and torch.equal(hessian, before[1])


@pytest.mark.parametrize("name", method.find())
def test_dead_inputs_and_empty_matrices(name: str) -> None:
    if name == "llama.cpp-k":
        pytest.importorskip("llama_cpp")
    weights, hessian = (torch.from_numpy(array) for array in plain.inputs(16, 72))
    hessian[5], hessian[:, 5] = 0, 0
    weights[:, 7], weights[3] = 0, 0
    for matrix, moments in ((weights, hessian), (weights * 0, hessian), (weights, hessian * 0)):
        found = method.find()[name].quantize(matrix, moments, 3).weights
        assert torch.isfinite(found).all()
        error, energy = (output_error(one, moments).sum() for one in (found - matrix, matrix))
        assert error <= 0.3 * energy
        assert matrix.any() or not found.any()


def test_unknown_methods_are_refused() -> None:
    assert [one.name for one in method.choose(["msfp", "rtn-g64"])] == ["msfp", "rtn-g64"]
    with pytest.raises(UsageError, match="no method 'rtn'; expected one of awq-g128"):
        method.choose(["rtn"])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_k_quants_are_llama_cpps_own(bits: int) -> None:
    pytest.importorskip("llama_cpp")
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    from shiftadd_tvm.accuracy.methods.k_quants import KINDS
    from shiftadd_tvm.baselines.ggml import TYPES, Ggml

    weights, hessian = plain.inputs(9, 96)  # 8 rows make a whole number of blocks
    found = run("llama.cpp-k", weights, hessian, bits)
    ggml, kind = Ggml(), TYPES[KINDS[bits]]
    padded = np.concatenate([weights, np.zeros((7, 96), np.float32)]).reshape(2, 768)
    packed = np.zeros((2, ggml.row_size(kind, 768)), np.uint8)
    importance = np.concatenate([np.diag(hessian)] * 8)
    for long_row, out in zip(padded, packed, strict=True):
        addresses = (long_row.ctypes.data, out.ctypes.data)
        ggml.quantize_chunk(kind, *addresses, 0, 1, 768, importance.ctypes.data)
    expected = quants.dequantize(packed, GGMLQuantizationType(kind)).reshape(-1, 96)[:9]
    np.testing.assert_array_equal(found.weights.numpy(), expected)
    assert found.bits == pytest.approx(packed.nbytes * 8 / weights.size)
    relative = np.square(expected - weights).sum() / np.square(weights).sum()
    assert relative < {2: 0.2, 3: 0.06, 4: 0.02}[bits]
    flat = run("llama.cpp-k", weights, np.eye(96, dtype=np.float32), bits).weights
    weighted = [np.square(w - weights) @ np.diag(hessian) for w in (expected, flat.numpy())]
    assert weighted[0].sum() < weighted[1].sum()  # importance is heard
