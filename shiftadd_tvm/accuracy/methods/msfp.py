"""MSFP, Microsoft floating point (Darvish Rouhani et al. 2020): sixteen inputs share an exponent.

A code is a sign and a magnitude; the shared exponent is that of the largest weight of the box.
"""

import math

import torch
from torch import Tensor

from shiftadd_tvm.accuracy.method import Dequantized, Method

BOX = 16
_EXPONENT_BITS = 8


def quantize(weights: Tensor, hessian: Tensor, bits: int) -> Dequantized:
    """Round to the nearest; `hessian` is not looked at."""
    outputs, inputs = weights.shape
    boxes = torch.nn.functional.pad(weights, (0, -inputs % BOX)).reshape(outputs, -1, BOX)
    exponent = torch.frexp(boxes.abs().amax(2, keepdim=True)).exponent  # largest < 2^exponent
    step = torch.ldexp(torch.ones_like(boxes[..., :1]), exponent - (bits - 1))
    largest = 2 ** (bits - 1) - 1
    rounded = torch.round(boxes / step).clamp(-largest, largest) * step
    stored = bits + _EXPONENT_BITS * math.ceil(inputs / BOX) / inputs
    return Dequantized(rounded.reshape(outputs, -1)[:, :inputs].contiguous(), stored)


METHODS = (
    Method(
        name="msfp",
        quantize=quantize,
        widths=(2, 3, 4),
        multiplication_free=False,
        remark="magnitudes are multiplied",
    ),
)
