"""ShiftAddLLM's Acc. (You et al. 2024): scales for every column, each a sum of powers of two.

Every column is fitted as it stands after the feedback of those before it. As published its numbers
belong to weights whose rotation was undone into dense float16; both variants are here.
"""

import torch
from torch import Tensor

from shiftadd_tvm.accuracy.group_fit import fit_levels
from shiftadd_tvm.accuracy.incoherence import Incoherent
from shiftadd_tvm.accuracy.method import Dequantized, Method
from shiftadd_tvm.error_feedback import Feedback

TERMS, ROUNDS = 3, 20
_TERM_BITS, _RESCALE_BITS = 8, 16
_SEED = 0


def quantize(weights: Tensor, hessian: Tensor, bits: int) -> Dequantized:
    """Without rotation: planes and powers of two, as they could be deployed."""

    def round_column(k: int, column: Tensor) -> Tensor:
        levels = torch.from_numpy(fit_levels(column.double().numpy(), bits, TERMS, ROUNDS)).float()
        return levels[torch.bucketize(column, (levels[1:] + levels[:-1]) / 2, right=True)]

    rounded = Feedback(hessian).quantize(weights, round_column)
    return Dequantized(rounded, bits + _TERM_BITS * TERMS * bits / len(weights))


def quantize_dense(weights: Tensor, hessian: Tensor, bits: int) -> Dequantized:
    """With the rotation: the bits are those of codes and scales before it was undone."""
    rotated = Incoherent(weights, hessian, _SEED)
    found = quantize(rotated.weights, rotated.hessian, bits)
    return Dequantized(rotated.undo(found.weights), found.bits + _RESCALE_BITS / len(weights))


METHODS = (
    Method(
        name="shiftaddllm-acc",
        quantize=quantize,
        widths=(2, 3, 4),
        multiplication_free=True,
        remark="column-wise, without the paper's rotation",
    ),
    Method(
        name="shiftaddllm-acc-dense",
        quantize=quantize_dense,
        widths=(2, 3, 4),
        multiplication_free=False,
        remark="as published: a rotation undone into dense float weights",
    ),
)
