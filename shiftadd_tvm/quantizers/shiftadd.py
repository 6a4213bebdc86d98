"""The calibrated quantizer: output-error feedback around binary codes with power-of-two scales.

ShiftAddLLM's objective (section 4.2: the output's error, not the weight's) with a run-time rotation: the
inputs' second moments are rotated as the weights are, and `separable_feedback` fits codes and scales
under them, or `block_feedback` where scales belong to blocks.

The moments are of the original model on one text. In the coded model every linear reads inputs that
the codes before it have disturbed, and noise is not correlated as the activations are. So what two
inputs have in common is shrunk and each one's own energy kept, as is done with covariances of few
samples (Schaefer and Strimmer 2005, target D). Reported errors are under the moments as measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import bcq, block_feedback, separable_feedback
from shiftadd_tvm.error_feedback import relative_output_error
from shiftadd_tvm.quantizers.alternating import make_rotation
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray

SHRINKAGE = 0.15  # of the moments of two different inputs; 0.05 is too little and 0.5 too much

Coded = separable_feedback.Coded | block_feedback.Coded


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
        self._given, self._measured = [torch.from_numpy(m) for m in matrices], hessian
        moments = _rotate(_rotate(_shrunk(hessian).numpy(), self._rotation).T, self._rotation)
        self._hessian = torch.from_numpy(moments)
        separable = settings.scale_format == "separable"
        self._method = separable_feedback if separable else block_feedback
        self._feedback = self._method.make_feedback(self._hessian, settings)

    def quantize(
        self, bits: Sequence[int], importance: Sequence[float] | None = None, rounds: int = 2
    ) -> list[Quantized]:
        """Return one weight for each matrix, with its own bits; see `quantize`."""
        fitted = self._fit(bits, importance, rounds)
        found = []
        for one, error in zip(fitted, self._errors(fitted), strict=True):
            planes, scales = one.pack(self._settings)
            outputs, inputs = one.dense.shape
            weight = bcq.BCQWeight((outputs, inputs), planes, scales, self._rotation)
            found.append(Quantized(weight, error))
        return found

    def output_errors(self, bits: Sequence[int]) -> list[float]:
        """Return the relative output error of each matrix, its scales not refitted."""
        return self._errors(self._fit(bits, None, 0))

    def _errors(self, fitted: Sequence[Coded]) -> list[float]:
        found = [self._unrotate(one.dense) for one in fitted]
        pairs = zip(self._given, found, strict=True)
        return [relative_output_error(given, one, self._measured) for given, one in pairs]

    def _unrotate(self, rotated: Tensor) -> Tensor:
        if self._rotation is None:
            return rotated
        return torch.from_numpy(bcq.unrotate(rotated.numpy(), self._rotation))

    def _fit(
        self, bits: Sequence[int], importance: Sequence[float] | None, rounds: int
    ) -> Sequence[Coded]:
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


def _shrunk(moments: Tensor) -> Tensor:
    """Return moments (K, K) of which those of different inputs are less."""
    return torch.lerp(moments, moments.diagonal().diag(), SHRINKAGE)


def _rotate(values: Array, rotation: bcq.Rotation | None) -> Array:
    rotated = values if rotation is None else bcq.rotate(values, rotation)
    return np.ascontiguousarray(rotated)
