"""The calibrated quantizer: its error is the reference's, below the data-free one, whatever comes in."""

import numpy as np
import pytest
import torch

from shiftadd_tvm import bcq
from shiftadd_tvm.quantizers import alternating, shiftadd
from shiftadd_tvm.settings import QuantizeSettings


def moments(inputs: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * inputs, inputs)) @ rng.standard_normal((inputs, inputs))
    return (x.T @ x / len(x)).astype(np.float32)


def draw(shapes: list[tuple[int, int]], scale: float = 1.0, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(shape) * scale).astype(np.float32) for shape in shapes]


def relative_error(weight: bcq.BCQWeight, matrix: np.ndarray, hessian: np.ndarray) -> float:
    matrix, hessian = matrix.astype(np.float64), hessian.astype(np.float64)
    difference = bcq.dequantize(weight) - matrix
    energy = ((matrix @ hessian) * matrix).sum()
    return float(((difference @ hessian) * difference).sum() / energy)


@pytest.mark.parametrize("inputs", [20, 96, 67])
@pytest.mark.parametrize("bits", [[1], [2, 2], [3, 4, 2]])
def test_reported_error_is_that_of_the_weight(inputs: int, bits: list[int]) -> None:
    matrices = draw([(11 + 8 * i, inputs) for i in range(len(bits))])
    hessian = moments(inputs)
    quantized = shiftadd.quantize(matrices, bits, torch.from_numpy(hessian), QuantizeSettings())
    data_free = alternating.quantize([m.copy() for m in matrices], bits, QuantizeSettings())
    for matrix, count, one, other in zip(matrices, bits, quantized, data_free, strict=True):
        error = relative_error(one.weight, matrix, hessian)
        assert one.weight.bits == count
        assert one.output_error == pytest.approx(error, rel=1e-3, abs=1e-6)
        assert error < relative_error(other, matrix, hessian)


@pytest.mark.parametrize("scale_format", ["row-group", "column-wise", "block-wise"])
@pytest.mark.parametrize(("inputs", "columns"), [(256, None), (96, 12), (67, None), (20, None)])
@pytest.mark.parametrize("bits", [[1], [3, 2]])
def test_scales_of_blocks(
    scale_format: str, inputs: int, columns: int | None, bits: list[int]
) -> None:
    """The same of the other formats, with blocks that the matrix cuts off and a rotation."""
    settings = QuantizeSettings(scale_format=scale_format, columns=columns)
    matrices = draw([(150 + 8 * i, inputs) for i in range(len(bits))])
    hessian = moments(inputs)
    quantized = shiftadd.quantize(matrices, bits, torch.from_numpy(hessian), settings)
    data_free = alternating.quantize([m.copy() for m in matrices], bits, settings)
    for matrix, count, one, other in zip(matrices, bits, quantized, data_free, strict=True):
        error = relative_error(one.weight, matrix, hessian)
        assert isinstance(one.weight.scales, bcq.BlockScales)
        assert one.weight.bits == count and one.weight.nbytes == other.nbytes
        assert one.output_error == pytest.approx(error, rel=1e-3, abs=1e-6)
        assert error < relative_error(other, matrix, hessian)


def test_group_shares_rotation_and_columns() -> None:
    matrices = draw([(16, 64), (24, 64)])
    hessian = torch.from_numpy(moments(64))
    first, second = shiftadd.quantize(matrices, [3, 2], hessian, QuantizeSettings(seed=5))
    assert first.weight.rotation is not None and second.weight.rotation is not None
    assert np.array_equal(first.weight.rotation.signs, second.weight.rotation.signs)
    scales = first.weight.scales, second.weight.scales
    assert all(isinstance(s, bcq.SeparableScales) for s in scales)
    assert np.array_equal(scales[0].column_terms, scales[1].column_terms)  # type: ignore[union-attr]


def test_same_bytes_for_any_number_of_threads() -> None:
    matrices, hessian = draw([(40, 64)]), torch.from_numpy(moments(64))
    threads = torch.get_num_threads()
    planes = []
    for count in (1, 2):
        torch.set_num_threads(count)
        (one,) = shiftadd.quantize(matrices, [3], hessian, QuantizeSettings())
        planes.append(one.weight.arrays())
    torch.set_num_threads(threads)
    assert all(np.array_equal(planes[0][name], planes[1][name]) for name in planes[0])


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e29])
def test_extreme_magnitudes_keep_their_relative_error(scale: float) -> None:
    hessian = moments(64)
    matrices = draw([(16, 64)], scale)
    (one,) = shiftadd.quantize(matrices, [3], torch.from_numpy(hessian), QuantizeSettings())
    assert relative_error(one.weight, matrices[0], hessian) < 0.05


@pytest.mark.parametrize("scale_format", ["separable", "row-group", "column-wise", "block-wise"])
def test_hostile_weights_and_inputs(scale_format: str) -> None:
    settings = QuantizeSettings(scale_format=scale_format)
    hessian = moments(64)
    hessian[:, 5] = hessian[5] = 0  # an input that is always zero
    matrix = draw([(16, 64)])[0]
    matrix[3] = 0
    matrix[:, 9] = 0.25
    for matrices in (
        [matrix],
        [np.zeros((4, 64), np.float32)],
        [matrix, np.zeros((4, 64), np.float32)],
    ):
        for h in (hessian, np.zeros_like(hessian), np.ones_like(hessian)):
            bits = [2] * len(matrices)
            quantized = shiftadd.quantize(matrices, bits, torch.from_numpy(h), settings)
            assert all(np.isfinite(bcq.dequantize(one.weight)).all() for one in quantized)
            assert not bcq.dequantize(quantized[-1].weight)[matrices[-1].any(1) == 0].any()


def test_more_rounds_do_not_harm() -> None:
    matrix, hessian = draw([(64, 256)])[0], moments(256)
    errors = [
        shiftadd.quantize(
            [matrix], [2], torch.from_numpy(hessian), QuantizeSettings(), rounds=rounds
        )[0].output_error
        for rounds in (0, 2)
    ]
    assert errors[1] < errors[0]


def test_disturbed_inputs_cost_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes do not rely on correlations that the codes before them disturb.

    A few directions hold most of the inputs' energy; a tenth of it is added as noise, which only the
    error that is looked at here has in it.
    """
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((512, 12)) @ rng.standard_normal((12, 96))
    inputs += 0.1 * rng.standard_normal(inputs.shape)
    clean = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    disturbed = clean + np.diag(0.1 * clean.diagonal())
    (matrix,) = draw([(64, 96)])

    def coded() -> bcq.BCQWeight:
        (one,) = shiftadd.quantize([matrix], [3], torch.from_numpy(clean), QuantizeSettings())
        return one.weight

    weight = coded()
    monkeypatch.setattr(shiftadd, "SHRINKAGE", 0.0)
    trusting = coded()
    assert relative_error(trusting, matrix, clean) < relative_error(weight, matrix, clean)
    assert relative_error(weight, matrix, disturbed) < 0.9 * relative_error(trusting, matrix, disturbed)
