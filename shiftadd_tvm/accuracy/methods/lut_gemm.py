"""LUT-GEMM (Park et al. 2024): plain binary coding by rows, float16 scales, without feedback."""

import math

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import block_fit
from shiftadd_tvm.accuracy.method import Dequantized, Method

Array = np.ndarray

GROUP = 128
_ROUNDS = 20
_SCALE_BITS = 16
_CHUNK = 1 << 10  # groups that are fitted at a time


def quantize(weights: Tensor, hessian: Tensor, bits: int) -> Dequantized:
    """Fit codes and scales of every group in turn; `hessian` is not looked at."""
    outputs, inputs = weights.shape
    padding = (0, -inputs % GROUP)
    groups = _cut(torch.nn.functional.pad(weights, padding))
    present = _cut(torch.nn.functional.pad(torch.ones_like(weights), padding))
    parts = [
        _fit(groups[start : start + _CHUNK], present[start : start + _CHUNK], bits)
        for start in range(0, len(groups), _CHUNK)
    ]
    rounded = np.concatenate(parts).reshape(outputs, -1)[:, :inputs]
    stored = bits + _SCALE_BITS * bits * math.ceil(inputs / GROUP) / inputs
    return Dequantized(torch.from_numpy(np.ascontiguousarray(rounded)), stored)


def _cut(matrix: Tensor) -> Array:
    return matrix.double().reshape(-1, GROUP).numpy()


def _fit(groups: Array, present: Array, bits: int) -> Array:
    planes, scales = block_fit.alternate(groups, present, bits, _ROUNDS, _to_half)
    rounded = sum(
        np.where(plane, scale[:, None], -scale[:, None])
        for plane, scale in zip(planes, scales.T, strict=True)
    )
    return np.asarray(rounded, np.float32)


def _to_half(scales: Array) -> tuple[Array, Array]:
    """Return the magnitudes of scales (G, q) as float16 would hold them, descending, float64."""
    descending = -np.sort(-np.abs(scales), axis=1)
    held = descending.astype(np.float16).astype(np.float64)
    return held, held


METHODS = (
    Method(
        name=f"lut-gemm-g{GROUP}",
        quantize=quantize,
        widths=(2, 3, 4),
        multiplication_free=False,
        remark="look-ups and adds, but sums are multiplied by float scales",
    ),
)
