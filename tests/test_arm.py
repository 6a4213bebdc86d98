"""The preset for 64-bit ARM: every operator is right under emulation, look-ups cost what they should.

Emulation says nothing about time, so what the kernels cost is counted: instructions a weight bit.
"""

from pathlib import Path

import numpy as np
import pytest
import test_ops
from emulation import Kernel, Program, compile_object, compiler, emulator
from test_ops import Shape

from shiftadd_tvm import backend
from shiftadd_tvm.kernel_inspection import count_instructions
from shiftadd_tvm.ops import lut, planes
from shiftadd_tvm.schedules.llvm import _lookup

ARM = backend.load("arm")
SMALL = {
    "one": Shape(),
    "tails": Shape(3, 37, 101, 3, 3, False, True, "I8", "block-wise"),
    "whole": Shape(4, 128, 64, 4, 2, True, False, "F16", "row-group", seed=1),
}
LARGE = {  # look-ups over several chunks, in both formats (a seed that 3 divides: int8)
    "int16": Shape(1, 192, 2100, 3, 3, True, seed=1),
    "int8": Shape(1, 192, 2100, 3, 3, True, seed=3),
    "several_tokens": Shape(4, 64, 1024, 2, 2, seed=2),
}
LOOK_UPS = ("lut_build", "lut_query", "lut_float_query", "lut_group")
DRAWN = {
    f"{op}_{name}": (op, shape)
    for shapes, operators in ((SMALL, sorted(test_ops.CASES)), (LARGE, LOOK_UPS))
    for name, shape in shapes.items()
    for op in operators
}


def case_of(op: str, shape: Shape) -> test_ops.Case:
    return test_ops.CASES[op](shape, np.random.default_rng(shape.seed), ARM)


def kernel_of(op: str, shape: Shape) -> Kernel:
    case = case_of(op, shape)
    return Kernel(op, case.compute, case.arrays, case.symbolic if shape.symbolic else ())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    if not emulator(ARM.machine):
        pytest.skip("qemu-aarch64 is not on the PATH (Debian: apt-get install qemu-user)")
    if not compiler(ARM.machine):
        pytest.skip("nothing compiles C for aarch64 (pip install ziglang)")
    kernels = {name: kernel_of(*drawn) for name, drawn in DRAWN.items()}
    return Program(kernels, ARM, tmp_path_factory.mktemp("arm"))


@pytest.mark.parametrize("name", DRAWN)
def test_emulated_equals_reference(name: str, program: Program) -> None:
    case = case_of(*DRAWN[name])
    expected = case.expected if isinstance(case.expected, list) else [case.expected]
    test_ops.compare(program.run(name, case.arrays, expected), expected, case.tolerance)


# the most instructions a weight bit: those of such kernels written in C by hand, fully unrolled
MOST = {"int16": 0.133, "int8": 0.075}


@pytest.mark.parametrize("name", MOST)
def test_instructions_a_weight_bit(name: str, tmp_path: Path) -> None:
    shape = Shape(1, 256, 4096, 3, 2, seed=LARGE[name].seed)
    form = test_ops.form_of(shape)
    assert form is lut.FORMATS[name]
    path = compile_object({"query": kernel_of("lut_query", shape)}, ARM, tmp_path / "query.o")
    count = count_instructions(path, "query")
    steps = _lookup.PRIMITIVES["neon"].turn
    looked_up = 2 * len(form.digits) * ARM.rows // 16  # vectors of 16 bytes a step
    assert count.multiplication_free and count.loop["shuffle"] == looked_up * steps
    bits = ARM.rows * planes.STEP * steps
    assert count.instructions_per_weight_bit(bits) <= MOST[name]
