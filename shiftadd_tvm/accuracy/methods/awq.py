"""AWQ-style scaling (Lin et al. 2024): important inputs get finer steps, then rounding to the nearest.

Input k is scaled by s[k] = (its rms)^t before rounding and by 1/s[k] after it; t is searched over
twenty values for the least output error. Two differences from the publication: the rms stands for
the mean magnitude, since it is what H knows, and each matrix has an s of its own. s is counted as
stored, 16 bits an input, though it can often be folded into what comes before.
"""

from torch import Tensor

from shiftadd_tvm.accuracy import uniform
from shiftadd_tvm.accuracy.method import Dequantized, Method
from shiftadd_tvm.error_feedback import output_error

GROUP = 128
_STEPS = 20
_SCALE_BITS = 16
_LEAST = 1e-4


def quantize(weights: Tensor, hessian: Tensor, bits: int) -> Dequantized:
    """Round under the best of the searched scales."""
    candidates = (_round(weights, scale, bits) for scale in _scales(hessian))
    best = min(candidates, key=lambda found: float(output_error(found - weights, hessian).sum()))
    outputs, inputs = weights.shape
    stored = uniform.stored_bits(inputs, GROUP, bits) + _SCALE_BITS / outputs
    return Dequantized(best, stored)


def _scales(hessian: Tensor) -> list[Tensor]:
    rms = hessian.diagonal().sqrt()
    found = []
    for step in range(_STEPS):
        scale = rms.pow(step / _STEPS).clamp_min(_LEAST)
        found.append((scale / (scale.max() * scale.min()).sqrt()).half().float())
    return found


def _round(weights: Tensor, scale: Tensor, bits: int) -> Tensor:
    scaled = weights * scale
    return uniform.fit(scaled, GROUP, bits).round(scaled) / scale


METHODS = (
    Method(
        name=f"awq-g{GROUP}",
        quantize=quantize,
        widths=(2, 3, 4),
        multiplication_free=False,
        remark="codes are multiplied; scales without clipping",
    ),
)
