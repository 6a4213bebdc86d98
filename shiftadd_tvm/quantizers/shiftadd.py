"""The calibrated quantizer: output-error feedback around binary codes with power-of-two scales.

ShiftAddLLM's objective (section 4.2: the output's error, not the weight's) with a run-time rotation: the
inputs' second moments are rotated as the weights are, and `separable_feedback` fits codes and scales
under them, or `block_feedback` where scales belong to blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import bcq, block_feedback, separable_feedback
from shiftadd_tvm.quantizers.alternating import make_rotation
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray


@dataclass(frozen=True)
class Quantized:
    """One linear and its relative output error, |X (W - What)'|^2 / |X W'|^2."""

    weight: bcq.BCQWeight
    output_error: float


class RotatedGroup:
    """The linears of an input group in the rotated basis, and the factor of their H: what coding them
    at any bits begins with."""

    def __init__(
        self, matrices: Sequence[Array], hessian: Tensor, settings: QuantizeSettings
    ) -> None:
        """Take float32 (N_i, K) matrices and the second moments of their activation, (K, K)."""
        self._settings = settings
        self._rotation = make_rotation(matrices[0].shape[1], settings)
        self._matrices = [torch.from_numpy(_rotate(m, self._rotation)) for m in matrices]
        moments = _rotate(_rotate(hessian.numpy(), self._rotation).T, self._rotation)
        self._hessian = torch.from_numpy(moments)
        separable = settings.scale_format == "separable"
        self._method = separable_feedback if separable else block_feedback
        self._feedback = self._method.make_feedback(self._hessian, settings)

    def quantize(
        self, bits: Sequence[int], importance: Sequence[float] | None = None, rounds: int = 2
    ) -> list[Quantized]:
        """Return one weight for each matrix, with its own bits; see `quantize`."""
        found = []
        for matrix, one in zip(self._matrices, self._fit(bits, importance, rounds), strict=True):
            outputs, inputs = matrix.shape
            planes, scales = one.pack(self._settings)
            weight = bcq.BCQWeight((outputs, inputs), planes, scales, self._rotation)
            found.append(Quantized(weight, one.output_error))
        return found

    def output_errors(self, bits: Sequence[int]) -> list[float]:
        """Return the relative output error of each matrix, its scales not refitted."""
        return [one.output_error for one in self._fit(bits, None, 0)]

    def _fit(
        self, bits: Sequence[int], importance: Sequence[float] | None, rounds: int
    ) -> Sequence[separable_feedback.Coded | block_feedback.Coded]:
        return self._method.fit(
            self._matrices,
            bits,
            self._hessian,
            self._feedback,
            self._settings,
            importance,
            rounds,
        )


def quantize(
    matrices: Sequence[Array],
    bits: Sequence[int],
    hessian: Tensor,
    settings: QuantizeSettings,
    importance: Sequence[float] | None = None,
    rounds: int = 2,
) -> list[Quantized]:
    """Return one weight for each float32 (N_i, K) matrix of an input group, with its own bits.

    `hessian` float32 (K, K) holds the second moments of the group's activation, `importance` the
    weight of each matrix's output error; codes are bettered and scales refitted `rounds` times. The
    weights share the rotation, and `column_terms` where they are separable.
    """
    return RotatedGroup(matrices, hessian, settings).quantize(bits, importance, rounds)


def _rotate(values: Array, rotation: bcq.Rotation | None) -> Array:
    rotated = values if rotation is None else bcq.rotate(values, rotation)
    return np.ascontiguousarray(rotated)
