"""The calibrated quantizer: output-error feedback around binary codes with power-of-two scales.

ShiftAddLLM's objective (section 4.2: the output's error, not the weight's) with separable scales and
a run-time rotation: the inputs' second moments are rotated as the weights are, and
`separable_feedback` fits codes and scales under them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import bcq, powers, separable_feedback
from shiftadd_tvm.quantizers.alternating import make_rotation
from shiftadd_tvm.separable_feedback import Coded
from shiftadd_tvm.separable_fit import encode, levels_of
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray


@dataclass(frozen=True)
class Quantized:
    """One linear and its relative output error, |X (W - What)'|^2 / |X W'|^2."""

    weight: bcq.BCQWeight
    output_error: float


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
    weight of each matrix's output error; scales are refitted `rounds` times. The weights share the
    rotation and `column_terms`.
    """
    inputs = matrices[0].shape[1]
    rotation = make_rotation(inputs, settings)
    rotated = [torch.from_numpy(_rotate(matrix, rotation)) for matrix in matrices]
    moments = _rotate(_rotate(hessian.numpy(), rotation).T, rotation)
    coded = separable_feedback.fit(
        rotated, bits, torch.from_numpy(moments), settings, importance, rounds
    )
    return [Quantized(_pack(one, rotation, settings), one.output_error) for one in coded]


def _rotate(values: Array, rotation: bcq.Rotation | None) -> Array:
    rotated = values if rotation is None else bcq.rotate(values, rotation)
    return np.ascontiguousarray(rotated)


def _pack(coded: Coded, rotation: bcq.Rotation | None, settings: QuantizeSettings) -> bcq.BCQWeight:
    levels = coded.levels
    index = torch.bucketize(coded.latent, (levels[1:] + levels[:-1]) / 2).numpy()
    above = levels_of(coded.planes.double().numpy())[1]  # of the non-negative levels, ascending
    patterns = np.concatenate([~above[::-1], above])
    planes = np.stack([bcq.pack_planes(pattern[index]) for pattern in patterns.T])
    scales = encode(
        coded.rows.numpy(),
        powers.round_to_terms(coded.columns.numpy(), settings.column_terms),
        coded.planes.numpy(),
        coded.exponent,
        settings,
    )
    return bcq.BCQWeight(tuple(coded.latent.shape), planes, scales, rotation)
