"""Schedules: they name real operators, and look up where the definition has a one-hot."""

import dataclasses
import importlib
import itertools
import pkgutil
import re

import kernels
import numpy as np
import pytest
import test_ops
import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from shiftadd_tvm import backend, fused_producers, ops, pipeline
from shiftadd_tvm.ops import OP, planes
from shiftadd_tvm.schedules.llvm import lut as lut_schedule

LLVM = [name for name, preset in backend.presets().items() if preset.family == "llvm"]
SHAPE = test_ops.Shape(2, 64, 96, 3, 3, bias=True)
ONE_HOT = '== T.Cast("uint32", v_entry)'  # [index == entry], which no schedule may compile
# What a multiply of vectors looks like, including dot products.
MULTIPLY = re.compile(r"^v?(mul[sp][sd]|fn?m(add|sub)\w*|dp\w+|pmadd\w*|pmul\w+|pdp\w+)$")

# The same of aarch64, on vector registers: general ones multiply for addresses.
ARM_MULTIPLY = re.compile(r"^(f?n?m(ul|la|ls|add|sub)\w*|sqr?dmul\w*|[su](dot|mull|mlal|mlsl)2?)$")
VECTORS = re.compile(r"\b[vqds]\d+\b")


def multiplies(preset: str, found: list[tuple[str, str]]) -> list[str]:
    """Return the instructions that multiply vectors."""
    if backend.load(preset).machine == "x86_64":
        return [mnemonic for mnemonic, _ in found if MULTIPLY.match(mnemonic)]
    arm = [mnemonic for mnemonic, o in found if VECTORS.search(o)]
    assert len(arm) > 50
    return [mnemonic for mnemonic in arm if ARM_MULTIPLY.match(mnemonic)]


def query_module(
    preset: str, shape: test_ops.Shape = SHAPE, op: str = "lut_query"
) -> tvm.ir.IRModule:
    case = test_ops.CASES[op](shape, np.random.default_rng(0), backend.load(preset))
    return kernels.op_module(op, case.compute, case.arrays, ())


def instructions(
    preset: str, shape: test_ops.Shape = SHAPE, op: str = "lut_query"
) -> list[tuple[str, str]]:
    """Return (mnemonic, operands) of the operator's own code, without its argument checks."""
    executable, _ = pipeline.build(query_module(preset, shape, op), backend.load(preset))
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
    known = {name for module in modules for name in module.REFERENCES} | {fused_producers.NAME}
    families = {preset.family for preset in backend.presets().values()}
    for family in families:
        scheduled = pipeline.schedules(family)
        assert scheduled and not set(scheduled) - known


def test_no_operator_has_two_schedules() -> None:
    for family in {preset.family for preset in backend.presets().values()}:
        modules = set(pipeline.schedules(family).values())
        names = [name for module in modules for name in module.OPS]
        assert len(names) == len(set(names))


# (operator, shape): both formats of whole numbers (the seed decides), whose loops differ, and floats
FORMATS = {
    "int16": ("lut_query", dataclasses.replace(SHAPE, seed=1)),
    "int8": ("lut_query", dataclasses.replace(SHAPE, seed=0)),
    "float32": ("lut_float_query", SHAPE),
    "int16, grouped": ("lut_group", dataclasses.replace(SHAPE, seed=1)),
    "int8, grouped": ("lut_group", dataclasses.replace(SHAPE, seed=3)),
}


def test_the_seeds_choose_the_formats() -> None:
    names = {name: test_ops.form_of(shape).name for name, (_, shape) in FORMATS.items()}
    assert all(name.startswith(form) for name, form in names.items() if name != "float32")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("preset", LLVM)
def test_look_ups_multiply_nothing(preset: str, name: str) -> None:
    # compiled for the target, so it needs no such processor
    op, shape = FORMATS[name]
    found = instructions(preset, shape, op)
    assert not multiplies(preset, found)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("preset", "register"), [("x86-avx512", "%zmm"), ("x86-avx2", "%ymm")])
def test_look_ups_shuffle_registers(preset: str, register: str, name: str) -> None:
    """Bytes of a vector at once: for every token two look-ups a digit; floats: one or two a byte."""
    op, shape = FORMATS[name]
    found = instructions(preset, shape, op)
    whole = op != "lut_float_query"
    if whole:
        digits = len(test_ops.form_of(shape).digit_bits)
        shuffle, least = "vpshufb", 2 * digits * shape.rows
    else:
        shuffle, least = "vperm(ps|d)", 2 * planes.VIEWS
    assert sum(bool(re.fullmatch(shuffle, m)) and register in o for m, o in found) >= least
    if whole:  # digits of 7 bits are added in bytes, and all in 16 bits
        adds = {"vpaddw", "vpaddb"} if digits == 2 else {"vpaddw"}
        assert adds <= {mnemonic for mnemonic, _ in found}


def test_the_detector_sees_multiplies() -> None:
    for preset in LLVM:
        assert multiplies(preset, instructions(preset, op="gemm_planes")), preset
    for name in ("fmul", "fmla", "fnmsub", "fmadd", "mul", "mla", "sdot", "umull2", "smlal"):
        assert ARM_MULTIPLY.match(name), name
    for name in ("fadd", "tbl", "uaddl", "add", "uzp1", "fmov", "movi", "uaddw2"):
        assert not ARM_MULTIPLY.match(name), name
    for name in (
        "vmulps",
        "mulss",
        "vfmadd231ps",
        "vfnmadd213ss",
        "vdpps",
        "vdpbf16ps",
        "pmulld",
        "vpdpbusd",
    ):
        assert MULTIPLY.match(name), name
    for name in ("vaddps", "vpermps", "movd", "vmovdqu", "imull"):
        assert not MULTIPLY.match(name), name


@pytest.mark.parametrize("preset", LLVM)
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("outputs", [1, 5, 64, 77])
@pytest.mark.parametrize("op", ["lut_query", "lut_float_query", "lut_group"])
def test_the_one_hot_reduction_never_survives(
    op: str, preset: str, bits: int, outputs: int
) -> None:
    module = query_module(preset, test_ops.Shape(2, outputs, 40, bits, 2, seed=bits), op)
    scheduled, counts = pipeline.apply_schedules(module, backend.load(preset))
    assert counts["scheduled"] == 1 and counts["fallback"] == 0
    assert ONE_HOT in module.script() and ONE_HOT not in scheduled.script()
    (function,) = (f for _, f in scheduled.functions_items() if isinstance(f, tirx.PrimFunc))
    assert function.attrs[OP] == op and function.attrs["tirx.is_scheduled"]


def test_an_operator_without_a_schedule_keeps_its_loops() -> None:
    case = test_ops.CASES["lut_block"](SHAPE, np.random.default_rng(0), backend.load("x86-avx2"))
    module = kernels.op_module("lut_block", case.compute, case.arrays, ())
    scheduled, counts = pipeline.apply_schedules(module, backend.load("x86-avx2"))
    assert (counts["scheduled"], counts["fallback"]) == (0, 1)
    tvm.ir.assert_structural_equal(module, scheduled)


def knob_choices() -> list[dict[str, int]]:
    """Return values of the knobs in which every pair of values of two knobs occurs."""
    names, sizes = list(lut_schedule.KNOBS), lut_schedule.KNOBS.values()
    every = list(itertools.product(*(knob.candidates for knob in sizes)))
    pairs = lambda choice: set(itertools.combinations(enumerate(choice), 2))
    missing, chosen = set().union(*map(pairs, every)), []
    while missing:
        best = max(every, key=lambda choice: len(pairs(choice) & missing))
        missing -= pairs(best)
        chosen.append(dict(zip(names, best, strict=True)))
    return chosen


@pytest.mark.skipif(not kernels.PRESETS, reason="no preset runs on this machine")
@pytest.mark.parametrize("seed", [1, 3], ids=["int16", "int8"])
def test_no_knob_changes_a_result(seed: int) -> None:
    """Two chunks of 68 steps and enough rows, so that no candidate is cut down."""
    preset = backend.load(kernels.PRESETS[0])
    most = [max(knob.candidates) for knob in lut_schedule.KNOBS.values()]
    outputs = preset.rows * most[0] * most[1]
    shape = test_ops.Shape(1, outputs, 1088, 2, 2, True, seed=seed)
    case = test_ops.CASES["lut_query"](shape, np.random.default_rng(seed), preset)
    module = kernels.op_module("lut_query", case.compute, case.arrays, ())
    (function,) = (f for _, f in module.functions_items() if isinstance(f, tirx.PrimFunc))
    functions, texts = {}, set()
    for index, knobs in enumerate(knob_choices()):
        schedule = Schedule(tvm.ir.IRModule({"main": function}))
        lut_schedule.schedule(schedule, preset, **knobs)
        name = f"choice{index}"
        functions[name] = schedule.mod["main"].with_attr("global_symbol", name)
        texts.add(schedule.mod["main"].script())
    assert len(texts) == len(functions) >= 20  # every choice is a kernel of its own
    compiled = tvm.compile(tvm.ir.IRModule(functions), tvm.target.Target(preset.target))
    arrays = [tvm.runtime.tensor(array) for array in case.arrays]
    for name, knobs in zip(functions, knob_choices(), strict=True):
        found = tvm.runtime.tensor(np.full((1, outputs), np.nan, np.float32))
        compiled[name](*arrays, found)
        np.testing.assert_array_equal(found.numpy(), case.expected, err_msg=str(knobs))
