"""GPTQ (Frantar et al. 2023): output-error feedback around asymmetric uniform grids.

With act-order and static groups: the grids are those of the original weights.
"""

from functools import partial

from torch import Tensor

from shiftadd_tvm.accuracy import uniform
from shiftadd_tvm.accuracy.method import Dequantized, Method
from shiftadd_tvm.error_feedback import Feedback


def quantize(weights: Tensor, hessian: Tensor, bits: int, *, group: int) -> Dequantized:
    """Round column by column, the most important input first."""
    grid = uniform.fit(weights, group, bits)
    rounded = Feedback(hessian).quantize(weights, grid.round_column)
    return Dequantized(rounded, uniform.stored_bits(weights.shape[1], group, bits))


METHODS = tuple(
    Method(
        name=f"gptq-g{group}",
        quantize=partial(quantize, group=group),
        widths=(2, 3, 4),
        multiplication_free=False,
        remark="codes are multiplied; act-order, static groups",
    )
    for group in (64, 128)
)
