"""Tuning a GPU in two places: candidates built here, measured by their own program, committed here.

The GPU that measures is the emulated one; its clock is made up, and what it finds stays in this test.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command import call_here, fails
from conftest import Tiny
from cuda_emulation import Emulator
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm_ffi import structural_equal

from shiftadd_tvm import backend, compiler, pipeline, tuner
from shiftadd_tvm.cuda import driver, measuring, nvrtc
from shiftadd_tvm.errors import BadFileError, GateError, UnsupportedError, UsageError
from shiftadd_tvm.ops import lut_bits, lut_bytes
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.tuner import CANDIDATES, TuneRequest
from shiftadd_tvm.tuning import candidates, gpu, space, tasks
from shiftadd_tvm.tuning.log import TuningLog, key
from shiftadd_tvm.tuning.tasks import Task
from shiftadd_tvm.tuning.word_shapes import WordShape

TARGET = backend.load("cuda-sm90")
BITS = WordShape(70, 2, 3, 1, 2, 2, True, "fixed16")
TABLES = WordShape(40, 3, 2, 2, 2, 1, False, "shuffle16")
WRONG, BROKEN = 128, 512  # threads of a block of candidates that are spoilt


def task(shape: WordShape) -> Task:
    return Task(shape.function(TARGET.rows), shape, 1.0, 3 * shape.nbytes)


class Spoilt(nvrtc.Nvrtc):
    """Compiles for the emulated GPU; two candidates are not what they should be."""

    emulator: Emulator

    def compile(self, source: str, arch: str) -> nvrtc.Compiled:
        real = super().compile(source, arch)
        assert real.cubin.startswith(nvrtc.ELF) and f".target {arch}" in real.ptx
        threads = int(re.findall(r"__launch_bounds__\((\d+)", source)[0])
        defines, tables = [], "shuffled" in source
        if threads == WRONG and not tables:
            defines = ["FRAGMENT_ROW(lane,r)=(lane)%8+8*((r)&1)"]
        if threads == BROKEN and tables:
            source = re.sub(r"(__global__ void [^;{]*\) \{)", r'\1 emulation::fail("broken");', source)
        name = hashlib.sha256(source.encode()).hexdigest()[:12]
        image = b"\x7fELF:" + str(self.emulator.kernels(source, name, *defines)).encode() + b"\0"
        return nvrtc.Compiled(image, real.ptx, real.log)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with candidates and times."""
    folder = tmp_path_factory.mktemp("candidates")
    emulator = Emulator(tmp_path_factory.mktemp("gpu"))
    (folder / "scratch").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "Nvrtc", type("Emulating", (Spoilt,), {"emulator": emulator}))
        candidates.build(
            *(folder / CANDIDATES, [task(BITS), task(TABLES)], TARGET, 6),
            *(folder / "scratch", 2, lambda done, total, what: None),
        )
    # no package is there: only what Python has itself
    command = [sys.executable, "-I", "-S", str(folder / CANDIDATES)]
    environment = emulator.environment(Path("none"))
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "2 of 2" in again.stderr
    return folder


def results(folder: Path, shape: WordShape) -> dict[int, dict[str, Any]]:
    """Return what was measured of each candidate, by the threads of its blocks."""
    times = json.loads((folder / measuring.TIMES).read_text())["tasks"][task(shape).name]
    return {32 * result["values"]["warps"]: result for result in times}


def test_candidates_are_checked_and_timed(measured: Path) -> None:
    bits, tables = results(measured, BITS), results(measured, TABLES)
    assert set(bits) == set(tables) == {128, 256, 512}
    assert bits[WRONG]["failed"] == "computes other numbers than the reference"
    assert tables[BROKEN]["failed"] == "emulated GPU: broken"
    right = [bits[256], bits[512], tables[128], tables[256]]
    assert all(result["seconds"] > 0 and result["failed"] is None for result in right)
    device = json.loads((measured / measuring.TIMES).read_text())["device"]
    assert device == {"gpu": "emulated GPU", "arch": "sm_90", "driver": "13.0"}


@pytest.fixture(scope="module")
def committed(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> TuningLog:
    log = tmp_path_factory.mktemp("log") / "log"
    request = TuneRequest("cuda-sm80", str(measured), stage="commit", output=str(log))
    report = tuner.TuneReport(**gpu.run(request, lambda done, total, what: None))
    assert (report.target, report.measured) == ("cuda-sm90", "two-stage")
    assert [t["before_us"] > t["after_us"] for t in report.tasks] == [True, True]
    assert [t["failed"] for t in report.tasks] == [1, 1]
    return TuningLog(log, "cuda-sm90")


@pytest.mark.parametrize("shape", [BITS, TABLES])
def test_compiling_takes_the_fastest_that_is_right(shape: WordShape, committed: TuningLog) -> None:
    """A record gives the same function as the schedule written by hand with its knobs."""
    function = task(shape).function
    module = IRModule({"main": function})
    scheduled, counts = pipeline.apply_schedules(module, TARGET, [committed])
    assert counts == {"tuned": 1, "scheduled": 0, "fallback": 0}
    file: ModuleType = pipeline.schedules("cuda")[shape.op]
    threads = {"fixed16": 256, "shuffle16": 128}[shape.activations]
    values = next(v for v in space.points(file) if v["warps"] * 32 == threads)
    by_hand = file.schedule(Schedule(IRModule({"main": function})), TARGET, **values)
    assert committed.records[key(function)][0]["op"] == shape.op
    assert structural_equal(scheduled["main"].body, by_hand.body, map_free_vars=True)


def test_a_shape_makes_the_function_that_compiling_emits(tiny: Tiny) -> None:
    batches = (1, 2, 4, 8)
    for activations, form in lut_bits.FORMATS.items():
        module, _ = compiler.relax_module(open_packed(tiny.packed), TARGET, activations, batches)
        found = tasks.of_module(module, TARGET)
        assert {one.shape.tokens for one in found} == {*batches}
        for one in found:
            # of 8 tokens both formats are one kernel, which goes by the first one's name
            shared = activations == "bytes16" and one.shape.tokens >= lut_bytes.ROWS
            named = "fixed16" if shared else activations
            assert isinstance(one.shape, WordShape) and one.shape.activations == named
            assert one.shape.read == lut_bytes.read(form, one.shape.tokens)
            assert key(one.shape.function(TARGET.rows)) == key(one.function)


def test_times_of_other_candidates_are_refused(measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(measured / CANDIDATES, folder)
    with pytest.raises(UsageError, match=r"holds no times.json; run python3 candidates.pyz"):
        gpu._measured(folder, *gpu._made(folder))
    times = json.loads((measured / measuring.TIMES).read_text())
    for change, error, sentence in (
        ({"candidates": "0"}, BadFileError, "times of other candidates"),
        ({"tasks": {task(BITS).name: [{}]}}, BadFileError, "is damaged"),
    ):
        (folder / measuring.TIMES).write_text(json.dumps(times | change))
        with pytest.raises(error, match=sentence):
            gpu._measured(folder, *gpu._made(folder))
    spoilt = times["tasks"][task(BITS).name]
    spoilt[0]["failed"] = "computes other numbers than the reference"
    (folder / measuring.TIMES).write_text(json.dumps(times))
    with pytest.raises(GateError, match="untuned kernel of lut_bits_query_70x512.* other numbers"):
        gpu._measured(folder, *gpu._made(folder))
    (folder / CANDIDATES).write_bytes(b"no archive")
    with pytest.raises(BadFileError, match="is damaged; build it anew"):
        gpu._made(folder)


def test_the_program_says_what_is_missing(measured: Path) -> None:
    emulator = Emulator(measured / "other")
    command = [sys.executable, "-I", "-S", str(measured / CANDIDATES), "-o", str(measured / "none.json")]
    for settings, sentence in (
        ({"GPUS": 0}, "lacks a GPU that the CUDA driver knows"),
        ({"ARCH": 80}, "is for sm_90, this machine has emulated GPU (sm_80)"),
        ({"MEMORY": 5000}, "cannot be measured: cuMemAlloc_v2 failed (CUDA_ERROR_EMULATED)"),
    ):
        environment = emulator.environment(Path("none"), **settings)
        child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert child.returncode == 3 and sentence in child.stderr and "Traceback" not in child.stderr
    assert not (measured / "none.json").exists()


def test_the_command_builds_for_an_absent_gpu(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ["tune", tiny.packed, "--target", "cuda-sm90", "--stage", "build", "--trials", "1"]
    child = call_here(*words, "--op", "lut_bits_query", "--json", "-o", folder, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout)
    assert report["measured"] == "not yet" and all(t["candidates"] == 1 for t in report["tasks"])
    with zipfile.ZipFile(folder / CANDIDATES) as archive:
        images = [archive.read(n) for n in archive.namelist() if n.endswith(".cubin")]
        planes = json.loads(archive.read(measuring.TASKS))["tasks"][0]
    assert len(images) == len(report["tasks"]) and all(i.startswith(nvrtc.ELF) for i in images)
    assert planes["arguments"][planes["weights"]].keys() == {"seed", "bytes"}
    assert (folder / CANDIDATES).stat().st_size < candidates.LIMIT
    fails(call_here(*words, "-o", folder, cwd=tmp_path), 2, "already exists", "remove it")
    if not driver.present():
        measure = call_here("tune", folder, "--stage", "measure", cwd=tmp_path)
        fails(measure, UnsupportedError.exit_code, "cannot be measured here", "libcuda.so.1")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--target", "cuda-sm90", "--stage", "guess"], 2, "expected one of build, measure, commit"),
        (["--stage", "commit"], 2, "needs the folder that --stage build wrote"),
        (["nowhere", "--stage", "commit"], 2, "holds no candidates.pyz"),
        (["--target", "x86-64", "--stage", "build"], 2, "--stage is for GPUs"),
        (["--target", "cuda-sm90", "--rpc", "a:1:b"], 2, "--rpc is for processors"),
        (["nowhere", "--stage", "measure", "-o", "x"], 2, "leave -o out"),
    ],
)
def test_what_cannot_be_asked(words: list[str], code: int, sentence: str, tmp_path: Path) -> None:
    fails(call_here("tune", *words, cwd=tmp_path), code, sentence)


def test_a_gpu_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "present", lambda: False)
    with pytest.raises(UnsupportedError, match=r"lacks a CUDA driver .*build them here by --stage build"):
        tuner.check(TARGET, TuneRequest("cuda-sm90"))
