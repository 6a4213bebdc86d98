"""RTN: every weight to the nearest point of its group's uniform grid."""

from functools import partial

from torch import Tensor

from shiftadd_tvm.accuracy import uniform
from shiftadd_tvm.accuracy.method import Dequantized, Method


def quantize(weights: Tensor, hessian: Tensor, bits: int, *, group: int) -> Dequantized:
    """Round to the nearest; `hessian` is not looked at."""
    rounded = uniform.fit(weights, group, bits).round(weights)
    return Dequantized(rounded, uniform.stored_bits(weights.shape[1], group, bits))


METHODS = tuple(
    Method(
        name=f"rtn-g{group}",
        quantize=partial(quantize, group=group),
        widths=(2, 3, 4),
        multiplication_free=False,
        remark="codes are multiplied",
    )
    for group in (64, 128)
)
