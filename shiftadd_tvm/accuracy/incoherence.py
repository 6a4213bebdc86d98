"""QuIP's incoherence processing (Chee et al. 2023) as ShiftAddLLM's Acc. uses it, undone into float.

    rescale   w[:, k] *= s[k],  H[k, l] /= s[k] s[l],   s = (diag H / diag W'W)^(1/4)
    rotate    W <- U W V',  H <- V H V',  after H was scaled to trace K and 0.01 I added

U and V are a permutation and a Kronecker product of two random orthogonal matrices. Undoing gives a
dense matrix that no longer is a sum of planes: it cannot be deployed as shifts and adds.
"""

import math

import torch
from torch import Tensor

_LEAST = 1e-8
_RIDGE = 1e-2


class Orthogonal:
    """A random orthogonal transform of vectors of `size`, by its seed."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        small = next(d for d in range(math.isqrt(size), 0, -1) if size % d == 0)
        self._factors = [_draw(small, generator), _draw(size // small, generator)]
        self._order = torch.randperm(size, generator=generator)

    def apply(self, rows: Tensor) -> Tensor:
        """Return every row (..., size) transformed."""
        left, right = self._factors
        parts = rows[:, self._order].reshape(len(rows), len(left), len(right))
        return (left @ parts @ right.T).reshape(rows.shape)

    def undo(self, rows: Tensor) -> Tensor:
        """Return the rows that `apply` made these of."""
        left, right = self._factors
        parts = rows.reshape(len(rows), len(left), len(right))
        result = torch.empty_like(rows)
        result[:, self._order] = (left.T @ parts @ right).reshape(rows.shape)
        return result


def _draw(size: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0]


class Incoherent:
    """Weights and second moments in the rotated basis."""

    def __init__(self, weights: Tensor, hessian: Tensor, seed: int) -> None:
        """Rescale and rotate weights (N, K) and `hessian` (K, K)."""
        outputs, inputs = weights.shape
        diagonal = hessian.diagonal()
        importance = (diagonal / diagonal.max().clamp_min(_LEAST)).clamp_min(_LEAST)
        self._scale = (importance / weights.square().sum(0).clamp_min(_LEAST)) ** 0.25
        generator = torch.Generator().manual_seed(seed)
        self._left = Orthogonal(outputs, generator)
        self._right = Orthogonal(inputs, generator)
        self.weights = self._left.apply(self._right.apply(weights * self._scale).T).T.contiguous()
        moments = hessian / self._scale / self._scale[:, None]
        moments = moments * (inputs / moments.trace().clamp_min(_LEAST))
        moments = moments + _RIDGE * torch.eye(inputs)
        self.hessian = self._right.apply(self._right.apply(moments).T)

    def undo(self, weights: Tensor) -> Tensor:
        """Return rotated weights (N, K) in the original basis."""
        return self._right.undo(self._left.undo(weights.T).T.contiguous()) / self._scale
