"""What is run in emulation, on every preset that no machine of ours runs: operators and operands."""

import kernels
import numpy as np
import pytest
import test_ops
from emulation import Program, lacks
from test_ops import Shape
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend

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


def case_of(op: str, shape: Shape, preset: Backend) -> test_ops.Case:
    return test_ops.CASES[op](shape, np.random.default_rng(shape.seed), preset)


def kernel_of(op: str, shape: Shape, preset: Backend) -> PrimFunc:
    case = case_of(op, shape, preset)
    symbolic = case.symbolic if shape.symbolic else ()
    return kernels.op_function(op, case.compute, case.arrays, symbolic)


def build(drawn: dict[str, tuple[str, Shape]], preset: Backend) -> Program:
    """Return a program with these kernels; skip the test where nothing emulates or links it."""
    if missing := lacks(preset.machine):
        pytest.skip(missing)
    functions = {name: kernel_of(*what, preset) for name, what in drawn.items()}
    return Program(functions, preset)


def check(program: Program, name: str, op: str, shape: Shape, preset: Backend) -> None:
    """Run a kernel of `program` and compare every output with the reference's."""
    case = case_of(op, shape, preset)
    expected = case.expected if isinstance(case.expected, list) else [case.expected]
    test_ops.compare(program.run(name, case.arrays, expected), expected, case.tolerance)
