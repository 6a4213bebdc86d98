"""hadamard: x -> H (D x), random sign flips and a block Walsh-Hadamard transform; only adds.

The factor 1 / sqrt(block) is a power of two (block = 4^k) and is applied as an exponent add.
"""

from tvm import te
from tvm.tirx import Select, const

from shiftadd_tvm import bcq
from shiftadd_tvm.ops.shift import Array, shift
from shiftadd_tvm.powers import EXPONENT_BIAS

BUTTERFLY = "butterfly"  # what the stages of a transform are called, before their distance
LIVE = 2 * 4  # bytes of an input while stages follow one another: a stage, and the one that it reads


def rotate(values, signs, block: int):
    """Return the rotated (n, K) float32 of values (n, K) and packed signs (ceil(K / 8),) uint8."""
    rows, inputs = values.shape
    one = const(1, "uint8")

    def flipped(i, k):
        keep = (signs[k // 8] >> (k % 8).astype("uint8")) & one
        return Select(keep == one, values[i, k], -values[i, k])

    stage = te.compute((rows, inputs), flipped, name="flipped")
    entry = lambda i, k: stage[i, k]
    step = 1
    while step < block:
        stage, entry = _butterfly(entry, rows, inputs, step)
        step *= 2
    scale = exponent(block)
    return te.compute((rows, inputs), lambda i, k: shift(entry(i, k), scale), name="rotated")


def exponent(block: int):
    """Return the exponent of 1 / sqrt(block), as `shift` takes it."""
    return const(EXPONENT_BIAS - (block.bit_length() - 1) // 2, "uint32")


def _butterfly(entry, rows, inputs: int, step: int):
    """Return sums and differences at distance `step`, and how to read them by flat position."""

    def pair(i, a, half, j):
        left = entry(i, a * (2 * step) + j)
        right = entry(i, a * (2 * step) + step + j)
        return Select(half == 0, left + right, left - right)

    shape = (rows, inputs // (2 * step), 2, step)
    stage = te.compute(shape, pair, name=f"{BUTTERFLY}{step}")
    return stage, lambda i, k: stage[i, k // (2 * step), (k // step) % 2, k % step]


def reference_rotate(values: Array, signs: Array, block: int) -> Array:
    """Return `bcq.rotate`, the definition that quantizers use: the two must not drift apart."""
    return bcq.rotate(values, bcq.Rotation(block, signs))


REFERENCES = {"hadamard": reference_rotate}
