"""The preset for x86 with AVX-512: every operator is right under emulation, on odd sizes above all.

The processor that Bochs is asked for is the oldest of its own that has the preset's features: what newer
ones have stops the machine, and fails the test.
"""

import emulated_cases
import pytest
import test_ops
from emulated_cases import DRAWN
from emulation import Program
from test_ops import Shape

from shiftadd_tvm import backend, bcq
from shiftadd_tvm.ops import lut

AVX512 = backend.load("x86-avx512")
# every number of bits in both formats, one row and four, over two chunks; nothing divides anything
ODD = {
    f"{op}_{form}_{bits}_bits": (
        op,
        Shape(rows, 64 + 3 * bits, 1037 + bits, bits, 2, True, seed=seed),
    )
    for form, seed, tokens in (("int16", 1, (1, 4)), ("int8", 3, (4, 1)))
    for bits in range(1, bcq.MAX_BITS + 1)
    for rows in (tokens[bits % 2],)
    for op in ("lut_build", "lut_query", "lut_group")
}
CASES = DRAWN | ODD


@pytest.fixture(scope="module")
def program() -> Program:
    return emulated_cases.build(CASES, AVX512)


@pytest.mark.parametrize("name", CASES)
def test_emulated_equals_reference(name: str, program: Program) -> None:
    emulated_cases.check(program, name, *CASES[name], AVX512)


def test_the_odd_cases_are_what_they_are_called() -> None:
    drawn = {(test_ops.form_of(s), s.bits, s.rows) for _, s in ODD.values()}
    assert {(form, bits) for form, bits, _ in drawn} == {
        (lut.FORMATS[name], bits) for name in ("int16", "int8") for bits in range(1, 5)
    }
    assert {(form, rows) for form, _, rows in drawn} == {
        (lut.FORMATS[name], rows) for name in ("int16", "int8") for rows in (1, 4)
    }
