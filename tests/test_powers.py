"""Sums of powers of two: bytes, rounding, saturation, against an obvious scalar version."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftadd_tvm import powers

quick = settings(max_examples=300, derandomize=True, deadline=None, database=None)


def scalar_terms(value: float, terms: int) -> list[tuple[int, int]]:
    """Return (sign, exponent) of each present term, as the paper's rounding reads."""
    found, rest = [], value
    for _ in range(terms):
        if rest == 0 or round(math.log2(abs(rest))) < -63:
            continue
        exponent = min(round(math.log2(abs(rest))), 63)
        sign = -1 if rest < 0 else 1
        found.append((sign, exponent))
        rest -= sign * math.ldexp(1.0, exponent)
    return found


def scalar_value(terms: list[tuple[int, int]]) -> float:
    return math.fsum(sign * math.ldexp(1.0, exponent) for sign, exponent in terms)


def test_every_single_byte_reads_as_documented() -> None:
    codes = np.arange(256, dtype=np.uint8)[:, None]
    expected = [
        0.0 if code & 127 == 0 else (-1.0 if code >> 7 else 1.0) * 2.0 ** ((code & 127) - 64)
        for code in range(256)
    ]
    np.testing.assert_array_equal(powers.decode_terms(codes), np.array(expected, np.float32))


def test_every_power_survives_the_round_trip() -> None:
    codes = np.array([c for c in range(256) if c & 127], np.uint8)[:, None]
    np.testing.assert_array_equal(powers.round_to_terms(powers.decode_terms(codes), 1), codes)


@quick
@given(st.floats(-(2.0**66), 2.0**66), st.integers(1, 3))
def test_rounding_equals_the_scalar_version(value: float, terms: int) -> None:
    codes = powers.round_to_terms(np.array([value]), terms)
    assert codes.shape == (1, terms) and codes.dtype == np.uint8
    expected = scalar_value(scalar_terms(value, terms))
    assert powers.decode_terms(codes)[0] == np.float32(expected)


@quick
@given(st.floats(2.0**-60, 2.0**60), st.booleans())
def test_more_terms_never_leave_more(value: float, negative: bool) -> None:
    value = -value if negative else value
    errors = [abs(powers.round_to_powers(np.array(value), terms) - value) for terms in (1, 2, 3)]
    assert errors[0] >= errors[1] >= errors[2]
    assert errors[0] <= abs(value) * (math.sqrt(2) - 1) * (1 + 1e-6)


def test_known_roundings() -> None:
    values = np.array([0.0, -0.0, 3.0, -3.0, 0.75, 1e300, -1e300, 2.0**-63.6, 2.0**-63.4])
    found = powers.round_to_powers(values, 1)
    expected = [0, 0, 4, -4, 1, 2.0**63, -(2.0**63), 0, 2.0**-63]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert not powers.round_to_terms(np.zeros(3), 2).any()  # zero is all terms absent
    assert powers.round_to_powers(np.array(3.0), 2) == 3  # 4 - 1
    assert powers.round_to_powers(np.array(11.0), 3) == 11  # 8 + 4 - 1
    assert powers.round_to_powers(np.array(1e300), 3) == np.float32(3 * 2.0**63)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 4)])
def test_shapes(shape: tuple[int, ...]) -> None:
    codes = powers.round_to_terms(np.ones(shape), 2)
    assert codes.shape == (*shape, 2)
    assert powers.decode_terms(codes).shape == shape
    assert powers.decode_terms(codes).dtype == np.float32
