"""lut_bytes: the look-up of `lut_bits.py` for several activations at once, by products of bytes.

What is computed is the same, to the last bit: digits of 8 bits, summed where a plane has ones. Here a
digit lies in one byte, as tensor cores take it beside planes in the order "fragments" (`words.py`):

    bytes   uint32 (M, S, D, 4, 16)   byte c of [m, s, d, q, 4 t + i]: digit d of q[m] at input
                                      256 s + 32 (t + 4 (i % 2)) + 2 q + i // 2 + 8 c

Multiplies bytes by 0 or 128, and is labelled so.
"""

import numpy as np
from tvm import te, tirx
from tvm.tirx import const

from shiftadd_tvm.ops import lut_bits, words
from shiftadd_tvm.ops.lut_bits import DIGIT, Format
from shiftadd_tvm.ops.shift import Array

ROWS = 8  # activations of a tile of the tensor cores: from so many on the formats of bits use bytes
ORDER = "fragments"
BYTES = 4  # of a word


def read(form: Format, rows: int) -> str:
    """Return what look-ups of so many activations read of them, a name of `OPERATORS`: the numbers of
    bits and of bytes are the same, so several activations take the form that costs them less."""
    return "bytes" if form.read == "bits" and rows >= ROWS else form.read


def _u32(number: int):
    return const(number, "uint32")


def build(values, form: Format):
    """Return bytes (M, S, D, 4, 16) and scale (M, 1 + D), uint32, of values (M, K) float32."""
    fixed, scale = lut_bits.fixed_and_scale(values, form)
    return [bytes_of(fixed, form), scale]


def bytes_of(fixed, form: Format):
    """Return bytes (M, S, D, 4, 16) uint32 of the whole numbers of `lut.fixed`."""
    rows, inputs = fixed.shape[0], int(fixed.shape[1])
    zero = const(0, "int32")

    def entry(m, s, d, q, at):
        t, i = at // BYTES, at % BYTES
        first = s * 256 + (t + 4 * (i % 2)) * words.BITS + q * 2 + i // 2
        total = None
        for c in range(BYTES):
            k = first + c * DIGIT
            held = fixed[m, te.min(k, inputs - 1)].astype("int32")
            value = te.if_then_else(k < inputs, held, zero) if inputs % 256 else held
            byte = (value >> (d * DIGIT)).astype("uint32") & _u32((1 << DIGIT) - 1)
            moved = byte << _u32(c * DIGIT)
            total = moved if total is None else total | moved
        return total

    shape = (rows, words.steps(inputs, ORDER), form.digits, BYTES, 4 * BYTES)
    return te.compute(shape, entry, name="bytes")


def query(bytes_, scale, planes, plane_terms, row_terms, outputs: int, form: Format, bias=None):
    """Return what `lut_bits.query` returns, from the results of `build`."""
    rows, length = bytes_.shape[0], int(bytes_.shape[1]) * words.STEP[ORDER]
    blocks, count = int(planes.shape[0]), int(planes.shape[2])
    w, i = te.reduce_axis((0, length), "w"), te.reduce_axis((0, words.BITS), "i")

    def digit(m, d):
        at = w % 4 * BYTES + i % 2 * 2 + w % 8 // 4
        byte = bytes_[m, w // 8, d, i % DIGIT // 2, at] >> (i // DIGIT * DIGIT).astype("uint32")
        low = byte & _u32((1 << DIGIT) - 1)
        negative = tirx.all(d == form.digits - 1, low >= _u32(1 << (DIGIT - 1)))
        return tirx.Select(negative, low - _u32(1 << DIGIT), low)

    def found(m, b, p, d, n):
        one = (words.word(planes, p, b * words.ROWS + n, w) >> i.astype("uint32")) & _u32(1)
        return te.sum(tirx.Select(one == _u32(1), digit(m, d), _u32(0)), axis=[w, i])

    shape = (rows, blocks, count, form.digits, words.ROWS)
    sums = te.compute(shape, found, name="sums")
    return lut_bits.finish(sums, scale, plane_terms, row_terms, outputs, form, bias)


def reference_build(values: Array, form: Format) -> tuple[Array, Array]:
    """Return bytes (M, S, D, 4, 16) and scale (M, 1 + D), uint32, of values (M, K)."""
    fixed, exponents = lut_bits.reference_fixed(values, form)
    rows, inputs = fixed.shape
    steps = words.steps(inputs, ORDER)
    padded = np.zeros((rows, steps * 256), np.int64)
    padded[:, :inputs] = fixed
    # (m, s, high word bit, t, c, q, low bit): input 256 s + 128 high + 32 t + 8 c + 2 q + low
    parts = padded.reshape(rows, steps, 2, 4, BYTES, 4, 2)
    digits = np.stack([parts >> (d * DIGIT) & 255 for d in range(form.digits)], axis=2)
    ordered = digits.transpose(0, 1, 2, 6, 4, 7, 3, 5).astype(np.uint8)  # (m, s, d, q, t, low, high, c)
    packed = np.ascontiguousarray(ordered).view("<u4")
    scale = lut_bits.reference_scale(fixed, exponents, form)
    return packed.reshape(rows, steps, form.digits, BYTES, 4 * BYTES), scale


OPERATORS = {  # by what is read of an activation: what builds it, what reads it, the former in NumPy
    "bits": (lut_bits.build, lut_bits.query, lut_bits.reference_build),
    "tables": (lut_bits.build_tables, lut_bits.query_tables, lut_bits.reference_build_tables),
    "bytes": (build, query, reference_build),
}
REFERENCES = {
    "lut_bytes_build": reference_build,
    "lut_bytes_query": lut_bits.reference_query,
}
