"""Signed sums of powers of two ("additive powers of two"): one byte a term, exact arithmetic.

    term byte   bit 7 = sign (1: negative) · bits 0-6 = exponent + 64, or 0 for an absent term
    value       sum over the terms of sign · 2^exponent,  -63 <= exponent <= 63

Rounding is the paper's greedy one (ShiftAddLLM, section 3): each term is the power of two nearest
*in the logarithm* to what is left, sign(res) · 2^round(log2 |res|), so later terms may be negative.
"""

import numpy as np

MAX_EXPONENT = 63
EXPONENT_BIAS = 64
EXPONENT_MASK = 0x7F
NEGATIVE = 0x80

Array = np.ndarray


def round_to_terms(values: Array, terms: int) -> Array:
    """Return the term bytes, uint8 (*shape, terms), of finite float `values` of any shape.

    Magnitudes above 2^63 saturate, those below 2^-63.5 give an absent term.
    """
    residual = np.array(values, dtype=np.float64)
    codes = np.zeros((*residual.shape, terms), dtype=np.uint8)
    for index in range(terms):
        codes[..., index] = _nearest_power(residual)
        residual = residual - decode_terms(codes[..., index : index + 1]).astype(np.float64)
    return codes


def _nearest_power(residual: Array) -> Array:
    magnitude = np.abs(residual)
    with np.errstate(divide="ignore"):
        exponent = np.round(np.log2(magnitude))  # half to even, in the log domain
    present = exponent >= -MAX_EXPONENT  # false for log2(0) = -inf
    biased = np.minimum(np.where(present, exponent, 0), MAX_EXPONENT) + EXPONENT_BIAS
    return np.where(present, biased + NEGATIVE * (residual < 0), 0).astype(np.uint8)


def decode_terms(codes: Array) -> Array:
    """Return the float32 values (*shape) of term bytes uint8 (*shape, terms); the sum is exact
    unless its terms lie more than 24 binary places apart."""
    exponent = (codes & EXPONENT_MASK).astype(np.int32)
    power = np.ldexp(np.where(exponent > 0, 1.0, 0.0), exponent - EXPONENT_BIAS)
    signed: Array = np.where(codes & NEGATIVE, -power, power).sum(axis=-1)
    return signed.astype(np.float32)


def round_to_powers(values: Array, terms: int) -> Array:
    """Return float `values` rounded to sums of at most `terms` signed powers of two, float32."""
    return decode_terms(round_to_terms(values, terms))
