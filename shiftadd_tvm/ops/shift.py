"""shift: multiply by signed powers of two with integer adds on the exponent field, guarded.

shift(x, e) is IEEE-754 ldexp on float32 with flush to zero:

    x is ±0 or subnormal            -> zero of x's sign
    x is ±Inf or NaN                -> x, bit for bit
    biased exponent + e <= 0        -> zero of x's sign (a subnormal result is flushed)
    biased exponent + e >= 255      -> Inf of x's sign
    otherwise                       -> the bits of x plus e << 23

A term byte (`powers.py`) adds a sign and "absent"; a scale is the sum of its terms, applied left to
right. `TEST_VECTORS` are published in docs/operators.md.
"""

import numpy as np
from tvm import te
from tvm.tirx import FloatImm, Or, Select, const, reinterpret

from shiftadd_tvm.powers import EXPONENT_BIAS, EXPONENT_MASK, NEGATIVE

Array = np.ndarray

FRACTION_BITS = 23
FIELD_MAX = 255
SIGN_BIT = 0x80000000
INFINITY_BITS = 0x7F800000

# (bits of x, exponent, bits of the result)
TEST_VECTORS = (
    (0x3F800000, 3, 0x41000000),  # 1 -> 8
    (0xBFC00000, -1, 0xBF400000),  # -1.5 -> -0.75
    (0x00000000, -8, 0x00000000),  # +0 stays +0
    (0x80000000, 63, 0x80000000),  # -0 stays -0
    (0x00000001, 63, 0x00000000),  # a subnormal is flushed
    (0x807FFFFF, 1, 0x80000000),
    (0x00800000, -1, 0x00000000),  # the result would be subnormal
    (0x00800000, 1, 0x01000000),
    (0x7F7FFFFF, 1, 0x7F800000),  # overflow
    (0xFF000000, 1, 0xFF800000),
    (0x7F800000, -5, 0x7F800000),  # Inf and NaN pass
    (0xFF800000, 63, 0xFF800000),
    (0x7FC01234, -63, 0x7FC01234),
)


def shift(value, biased):
    """Return the float32 expression shift(value, biased - 64) for a uint32 `biased` in 0..128.

    Unsigned throughout: `tensorize` widens a Relax function's int32 arithmetic to int64. Where a
    result is used no step wraps: TVM declares unsigned overflow undefined.
    """
    u32 = lambda number: const(number, "uint32")
    bits = _bits(value)
    field = (bits >> u32(FRACTION_BITS)) & u32(FIELD_MAX)
    moved = field + biased  # the result's biased exponent + EXPONENT_BIAS
    sign, size = bits & u32(SIGN_BIT), bits & u32(SIGN_BIT - 1)
    normal = Select(
        moved >= u32(FIELD_MAX + EXPONENT_BIAS),
        sign | u32(INFINITY_BITS),
        sign | (size + (biased << u32(FRACTION_BITS)) - u32(EXPONENT_BIAS << FRACTION_BITS)),
    )
    guarded = Select(Or(field == u32(0), moved <= u32(EXPONENT_BIAS)), sign, normal)
    return reinterpret("float32", Select(field == u32(FIELD_MAX), bits, guarded))


def _bits(value):
    """Return the bits of a float32 expression; of a constant as one, which TVM's CUDA cannot say."""
    if isinstance(value, FloatImm):
        return const(int(np.float32(value.value).view(np.uint32)), "uint32")
    return reinterpret("uint32", value)


def shift_whole(value, biased):
    """Return shift(value, biased - 64) where value is a whole number below 2^32: of all the guards
    only that of zero can be needed."""
    u32 = lambda number: const(number, "uint32")
    bits = reinterpret("uint32", value)
    sign, size = bits & u32(SIGN_BIT), bits & u32(SIGN_BIT - 1)
    # in this order terms share the difference
    moved = (size - u32(EXPONENT_BIAS << FRACTION_BITS)) + (biased << u32(FRACTION_BITS))
    return reinterpret("float32", sign | Select(size == u32(0), size, moved))


def is_safe(value):
    """Tell whether no guard of `shift` can be needed for a value, whatever the exponent: its magnitude is
    from 2^-62 to 2^64."""
    u32 = lambda number: const(number, "uint32")
    field = (_bits(value) >> u32(FRACTION_BITS)) & u32(FIELD_MAX)
    return field - u32(EXPONENT_BIAS + 1) < u32(FIELD_MAX - 2 * EXPONENT_BIAS)


def shift_safe(value, biased):
    """Return shift(value, biased - 64) of a value that `is_safe`."""
    u32 = lambda number: const(number, "uint32")
    moved = (biased << u32(FRACTION_BITS)) - u32(EXPONENT_BIAS << FRACTION_BITS)
    return reinterpret("float32", _bits(value) + moved)


def apply_terms(value, codes, shift=shift):
    """Return the sum over the term bytes `codes` (a list of uint8 expressions) of value · term."""
    total = None
    for code in codes:
        biased = (code & const(EXPONENT_MASK, "uint8")).astype("uint32")
        flip = (code & const(NEGATIVE, "uint8")).astype("uint32") << const(24, "uint32")
        bits = reinterpret("uint32", shift(value, biased)) ^ flip
        absent = biased == const(0, "uint32")
        term = reinterpret("float32", Select(absent, const(0, "uint32"), bits))
        total = term if total is None else total + term
    return total


def scale_columns(values, terms):
    """Return values (n, K) float32, each column scaled by its term bytes, terms (P, K) uint8."""
    count = int(terms.shape[0])
    return te.compute(
        values.shape,
        lambda i, k: apply_terms(values[i, k], [terms[t, k] for t in range(count)]),
        name="shifted",
    )


def reference_shift(values: Array, exponents: Array) -> Array:
    """Return shift(values float32, exponents int) elementwise: the specification in NumPy."""
    values = np.asarray(values, np.float32)
    bits = values.view(np.uint32)
    field = ((bits >> FRACTION_BITS) & FIELD_MAX).astype(np.int64)
    moved = field + exponents
    sign = bits & np.uint32(0x80000000)
    exponent = np.clip(moved, 0, FIELD_MAX - 1).astype(np.uint32) << FRACTION_BITS
    result = sign | exponent | (bits & 0x7FFFFF)
    result = np.where(moved >= FIELD_MAX, sign | np.uint32(INFINITY_BITS), result)
    result = np.where((field == 0) | (moved <= 0), sign, result)
    result = np.where(field == FIELD_MAX, bits, result)
    return result.astype(np.uint32).view(np.float32)


def reference_terms(values: Array, codes: Array) -> Array:
    """Return values (...) float32 times their term bytes codes (..., P), summed left to right."""
    values = np.asarray(values, np.float32)
    total = np.zeros(np.broadcast_shapes(values.shape, codes.shape[:-1]), np.float32)
    for index in range(codes.shape[-1]):
        code = codes[..., index]
        biased = (code & EXPONENT_MASK).astype(np.int64)
        moved = reference_shift(np.broadcast_to(values, total.shape), biased - EXPONENT_BIAS)
        signed = np.where(code & NEGATIVE, -moved, moved)
        term = np.where(biased == 0, np.float32(0), signed)
        total = term if index == 0 else total + term
    return total


REFERENCES = {"shift": reference_terms}
