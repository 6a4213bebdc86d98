"""How sensitive a linear is by ShiftAddLLM's criterion (section 4.3), to compare with measured losses.

    IS = W / diag(chol((X X')^-1)),   C = ||IS||_F · std(IS)²

The paper takes C at each number of bits from a polynomial fit that it does not describe; here it falls
from bit to bit as measured losses do. It needs no walk through the model, only H.
"""

import torch
from torch import Tensor

from shiftadd_tvm.error_feedback import Feedback


def score(weights: Tensor, hessian: Tensor) -> float:
    """Return C of weights (N, K) float32 whose inputs have the second moments `hessian` (K, K)."""
    in_place = torch.arange(len(hessian))
    importance = weights / Feedback(hessian, order=in_place).factor.diagonal()
    return float(importance.norm() * importance.std() ** 2)
