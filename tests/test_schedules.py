"""Schedules: they name real operators, and look up where the definition has a one-hot."""

import importlib
import pkgutil
import re

import kernels
import numpy as np
import pytest
import test_ops
import tvm
from tvm import tirx

from shiftadd_tvm import backend, ops, pipeline
from shiftadd_tvm.ops import OP

LLVM = [name for name, preset in backend.presets().items() if preset.family == "llvm"]
SHAPE = test_ops.Shape(2, 64, 96, 3, 3, bias=True)
ONE_HOT = '== T.Cast("uint32", v_entry)'  # [index == entry], which no schedule may compile
# What a float multiply looks like, including dot products.
MULTIPLY = re.compile(r"^v?(mul[sp][sd]|fn?m(add|sub)\w*|dp\w+|pmadd\w*)$")


def query_module(preset: str, shape: test_ops.Shape = SHAPE) -> tvm.ir.IRModule:
    lanes = backend.load(preset).lanes
    case = test_ops.CASES["lut_query"](shape, np.random.default_rng(0), lanes)
    return kernels.op_module("lut_query", case.compute, case.arrays, ())


def instructions(preset: str) -> list[tuple[str, str]]:
    """Return (mnemonic, operands) of lut_query's own code, without its argument checks."""
    executable, _ = pipeline.build(query_module(preset), backend.load(preset))
    assembly = executable.mod.imports[0].inspect_source("asm")
    found, kernel = [], False
    for line in assembly.splitlines():
        if label := re.match(r"([\w.]+):", line):
            if not label[1].startswith(".L") or "lambda" in label[1]:
                kernel = "compute_" in label[1] or "lambda" in label[1]
        elif kernel and (parts := re.match(r"\t([a-z]\w*)\s*(.*)", line)):
            found.append((parts[1], parts[2]))
    assert len(found) > 50
    return found


def test_schedules_name_operators_that_exist() -> None:
    files = [module.name for module in pkgutil.iter_modules(ops.__path__)]
    modules = [importlib.import_module(f"{ops.__name__}.{file}") for file in files]
    known = {name for module in modules for name in module.REFERENCES}
    families = {preset.family for preset in backend.presets().values()}
    for family in families:
        scheduled = pipeline.schedules(family)
        assert scheduled and not set(scheduled) - known


def test_no_operator_has_two_schedules() -> None:
    for family in {preset.family for preset in backend.presets().values()}:
        modules = set(pipeline.schedules(family).values())
        names = [name for module in modules for name in module.OPS]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("preset", "permute", "register"),
    [("x86-avx512", "vperm(ps|d)", "%zmm"), ("x86-avx2", "vperm(ps|d)", "%ymm")],
)
def test_lut_query_permutes_registers_and_multiplies_nothing(
    preset: str, permute: str, register: str
) -> None:
    # compiled for the target, so it needs no such processor
    found = instructions(preset)
    assert sum(bool(re.fullmatch(permute, m)) and register in o for m, o in found) >= 8 * SHAPE.bits
    assert not [m for m, _ in found if MULTIPLY.match(m)]


def test_lut_query_without_vector_permutes_multiplies_nothing() -> None:
    assert not [m for m, _ in instructions("x86-64") if MULTIPLY.match(m)]


def test_the_detector_sees_multiplies() -> None:
    for name in ("vmulps", "mulss", "vfmadd231ps", "vfnmadd213ss", "vdpps", "vdpbf16ps"):
        assert MULTIPLY.match(name), name
    for name in ("vaddps", "vpermps", "movd", "vmovdqu", "imull"):
        assert not MULTIPLY.match(name), name


@pytest.mark.parametrize("preset", LLVM)
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("outputs", [1, 5, 64, 77])
def test_the_one_hot_reduction_never_survives(preset: str, bits: int, outputs: int) -> None:
    module = query_module(preset, test_ops.Shape(2, outputs, 40, bits, 2))
    scheduled, counts = pipeline.apply_schedules(module, backend.load(preset))
    assert counts["scheduled"] == 1 and counts["fallback"] == 0
    assert ONE_HOT in module.script() and ONE_HOT not in scheduled.script()
    (function,) = (f for _, f in scheduled.functions_items() if isinstance(f, tirx.PrimFunc))
    assert function.attrs[OP] == "lut_query" and function.attrs["tirx.is_scheduled"]


def test_an_operator_without_a_schedule_keeps_its_loops() -> None:
    case = test_ops.CASES["lut_block"](SHAPE, np.random.default_rng(0), 8)
    module = kernels.op_module("lut_block", case.compute, case.arrays, ())
    scheduled, counts = pipeline.apply_schedules(module, backend.load("x86-avx2"))
    assert (counts["scheduled"], counts["fallback"]) == (0, 1)
    tvm.ir.assert_structural_equal(module, scheduled)
