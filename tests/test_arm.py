"""The preset for 64-bit ARM: every operator is right under emulation, look-ups cost what they should.

Emulation says nothing about time, so what the kernels cost is counted: instructions a weight bit.
"""

from pathlib import Path

import emulated_cases
import pytest
import test_ops
from emulated_cases import DRAWN, LARGE
from emulation import Program, compile_object
from test_ops import Shape

from shiftadd_tvm import backend, pipeline
from shiftadd_tvm.kernel_inspection import count_instructions
from shiftadd_tvm.ops import lut, planes
from shiftadd_tvm.schedules.llvm import _lookup
from shiftadd_tvm.schedules.llvm import lut as lut_schedule

ARM = backend.load("arm")
PRESETS = [name for name, preset in backend.presets().items() if preset.machine == ARM.machine]


@pytest.fixture(scope="module")
def program() -> Program:
    return emulated_cases.build(DRAWN, ARM)


@pytest.mark.parametrize("name", DRAWN)
def test_emulated_equals_reference(name: str, program: Program) -> None:
    emulated_cases.check(program, name, *DRAWN[name], ARM)


KNOBS = {"shared": 2, "task": 2, "unroll": 2, "prefetch": 0, "far": 2048}  # and not the untuned ones


def test_knobs_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tuning for ARM ranks never runs there: it is run here."""
    assert all(lut_schedule.KNOBS[name].default != value for name, value in KNOBS.items())
    monkeypatch.setattr(pipeline, "defaults", lambda module, _: KNOBS if module.KNOBS else {})
    drawn = {f"lut_query_{name}": ("lut_query", LARGE[name]) for name in ("int16", "int8")}
    tuned = emulated_cases.build(drawn, backend.load("arm-cortex-a76"))
    for name, what in drawn.items():
        emulated_cases.check(tuned, name, *what, ARM)


# the most instructions a weight bit: those of such kernels written in C by hand, fully unrolled
MOST = {"int16": 0.133, "int8": 0.075}


@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize("preset", PRESETS)
def test_instructions_a_weight_bit(preset: str, name: str, tmp_path: Path) -> None:
    shape = Shape(1, 256, 4096, 3, 2, seed=LARGE[name].seed)
    form = test_ops.form_of(shape)
    assert form is lut.FORMATS[name]
    query = emulated_cases.kernel_of("lut_query", shape, ARM)
    path = compile_object({"query": query}, backend.load(preset), tmp_path / "query.o")
    count = count_instructions(path, "query")
    steps = _lookup.PRIMITIVES["neon"].turn
    looked_up = 2 * len(form.digits) * ARM.rows // 16  # vectors of 16 bytes a step
    assert count.multiplication_free and count.loop["shuffle"] == looked_up * steps
    bits = ARM.rows * planes.STEP * steps
    # to the digits of what they are compared with: one instruction more or less is scheduling
    assert round(count.instructions_per_weight_bit(bits), 3) <= MOST[name]
