"""Coded linears as torch modules whose scales can be trained; what they compute is what is stored.

The codes are dense float32 levels (N, K): the planes and c of a packed model. r and s pass through
their rounding to sums of powers of two as if it were not there (straight-through estimator), so that
the output is always that of the scales which will be stored.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import bcq
from shiftadd_tvm.powers import decode_terms
from shiftadd_tvm.separable_feedback import round_terms

Array = np.ndarray

_WHOLE_BLOCK = 64  # of the transform that is one product: larger ones are faster as two


class Rotated(torch.nn.Module):
    """s o H (D x), computed once for all linears of an input group."""

    def __init__(self, rotation: bcq.Rotation | None, columns: Tensor, terms: int) -> None:
        super().__init__()
        self.columns = torch.nn.Parameter(columns.clone())
        self._terms, self._last = terms, (None, None)
        self._block = rotation.block if rotation else 1
        if rotation:
            signs = torch.from_numpy(bcq.unpack_planes(rotation.signs, len(columns)))
            self._signs = signs.to(columns.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rotated and scaled x (..., K)."""
        if self._last[0] is not x:
            rotated = hadamard(x * self._signs, self._block) if self._block > 1 else x
            self._last = x, rotated * straight_through(self.columns, self._terms)
        return self._last[1]

    def forget(self) -> None:
        """Let go of the last activation."""
        self._last = None, None


class CodedLinear(torch.nn.Module):
    """y = r o (levels (s o H (D x))) + bias."""

    def __init__(
        self, codes: Tensor, rows: Tensor, rotated: Rotated, terms: int, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(rows.clone())
        self.bias = None if bias is None else torch.nn.Parameter(bias.clone())
        self._codes, self._terms = codes, terms
        self._rotated = [rotated]  # in a list: the group's, not a submodule of each linear

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (..., N) for activations (..., K)."""
        products = self._rotated[0](x) @ self._codes.T
        y = products * straight_through(self.rows, self._terms)
        return y if self.bias is None else y + self.bias


def straight_through(scale: Tensor, terms: int) -> Tensor:
    """Return `scale` rounded to sums of powers of two, with the gradient of `scale` itself."""
    return scale + (round_terms(scale.detach(), terms) - scale.detach())


def hadamard(x: Tensor, block: int) -> Tensor:
    """Return the orthonormal Walsh-Hadamard transform of each run of `block` = 4^k entries of
    x (..., K), as one product by a matrix, or two: H(a b) is the Kronecker product of H(a), H(b)."""
    inner = min(block, _WHOLE_BLOCK)
    runs = (x.reshape(-1, inner) @ _matrix(inner).to(x.device)).reshape(-1, block // inner, inner)
    rotated = runs if inner == block else _matrix(block // inner).to(x.device) @ runs
    return rotated.reshape(x.shape)


@functools.cache
def _matrix(size: int) -> Tensor:
    return torch.from_numpy(bcq.hadamard(np.eye(size, dtype=np.float32), size))


def codes_of(weight: bcq.BCQWeight) -> Tensor:
    """Return sum_i c[i] · b_i of a separable weight, float32 (N, K)."""
    assert isinstance(weight.scales, bcq.SeparableScales)
    outputs, inputs = weight.shape
    dense = torch.zeros(outputs, inputs)
    for plane, level in zip(weight.planes, decode_terms(weight.scales.plane_terms), strict=True):
        dense.add_(torch.from_numpy(bcq.unpack_planes(plane, inputs)), alpha=float(level))
    return dense
