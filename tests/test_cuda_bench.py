"""The bench of single look-ups on a GPU: its program, built here, measures on the emulated one.

That GPU's clock is made up: a launch takes a millisecond for each thread of a block, cuBLAS's 1024.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import call_here, fails
from cuda_emulation import Emulator

from shiftadd_tvm import backend, gpu_kernel_bench
from shiftadd_tvm.benchmark import gpu_kernels, tables
from shiftadd_tvm.cuda import driver, nvrtc, timing
from shiftadd_tvm.cuda.gpu import MeasureError
from shiftadd_tvm.cuda.roof import Roof
from shiftadd_tvm.errors import GateError, UnsupportedError
from shiftadd_tvm.gpu_kernel_bench import PROGRAM, Request

TARGET = backend.load("cuda-sm90")
SHAPES = ((70, 512), (300, 300))
ROOF = 1 << 16
LAUNCHES = {"ours": 512, "overlapping": 512, "lut-gemm": 512, "cublas-fp16": 1024}  # in ms
WRONG = "FRAGMENT_ROW(lane,r)=(lane)%8+8*((r)&1)"


class Emulating(nvrtc.Nvrtc):
    """Compiles for the emulated GPU too; what is between the tensor cores is as in `defines`."""

    emulator: Emulator
    defines: tuple[str, ...] = ()

    def compile(self, source: str, arch: str) -> nvrtc.Compiled:
        real = super().compile(source, arch)
        assert real.cubin.startswith(nvrtc.ELF) and f".target {arch}" in real.ptx
        name = hashlib.sha256(f"{source}{self.defines}".encode()).hexdigest()[:12]
        library = self.emulator.kernels(source, name, *self.defines)
        return nvrtc.Compiled(b"\x7fELF:" + str(library).encode() + b"\0", real.ptx, real.log)


def built(folder: Path, emulator: Emulator, request: Request, *defines: str) -> Path:
    own = {"emulator": emulator, "defines": defines}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "Nvrtc", type("OfTest", (Emulating,), own))
        gpu_kernel_bench.build(folder / PROGRAM, request, TARGET, lambda done, total, what: None)
    return folder / PROGRAM


def measured(program: Path, emulator: Emulator, **settings: object) -> tuple[str, dict[str, Any]]:
    """Return what the program prints, and what it finds; no package is there but Python's own."""
    command = [sys.executable, "-I", "-S", str(program)]
    environment = emulator.environment(Path("none"), **settings)
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout, json.loads((program.parent / timing.TIMES).read_text())


def small(activations: str = "fixed16", baselines: bool = True) -> Request:
    sizes = {"cold_bytes": 60_000, "roof_bytes": ROOF}
    return Request(SHAPES, 2, activations, baselines, **sizes)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    found = Emulator(tmp_path_factory.mktemp("gpu"))
    found.cublas()
    return found


@pytest.fixture(scope="module")
def program(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("bench"), emulator, small())


def test_all_contenders_are_checked_and_timed(program: Path, emulator: Emulator) -> None:
    printed, found = measured(program, emulator)
    assert found["device"]["gpu"] == "emulated GPU"
    fields = gpu_kernels.fields(found, "fixed16")
    assert [tuple(row["shape"]) for row in fields["kernels"]] == [*SHAPES]
    for row, (outputs, inputs) in zip(fields["kernels"], SHAPES, strict=True):
        assert set(row["baselines"]) == {*LAUNCHES} - {"ours"}
        planes = 2 * -(-outputs // 32) * 32 * -(-inputs // 256) * 256 // 8
        assert planes < row["weight_bytes"] < planes * 1.3
        assert row["microseconds"] == pytest.approx(LAUNCHES["ours"] * 1e3)
        assert row["bandwidth_fraction"] == pytest.approx(
            row["weight_bytes"] / 0.512 / row["dram_bandwidth_bytes_per_second"]
        )
        for name, peer in row["baselines"].items():
            assert peer["ratio"] == pytest.approx(LAUNCHES[name] / LAUNCHES["ours"]), name
        assert row["baselines"]["cublas-fp16"]["weight_bytes"] == 2 * outputs * inputs
    # a graph reads the buffer four times, by blocks of 512 threads
    assert fields["dram_bandwidth_bytes_per_second"] == pytest.approx(ROOF / 0.512)
    assert printed.count("of the roof") == 2 * len(LAUNCHES) and "we are 2.00 x" in printed
    shown = tables.kernels({"target": "cuda-sm90", "bits": 2, **fields})
    assert "emulated GPU" in shown and "cublas-fp16" in shown and "2.00 x" in shown


@pytest.mark.parametrize("activations", ["shuffle16", "bytes16", "fixed24"])
def test_every_format_is_measured(activations: str, emulator: Emulator, tmp_path: Path) -> None:
    _, found = measured(built(tmp_path, emulator, small(activations, False)), emulator)
    assert all("error" not in own for shape in found["shapes"] for own in shape["contenders"].values())


def test_a_kernel_that_is_wrong_is_not_timed(emulator: Emulator, tmp_path: Path) -> None:
    _, found = measured(built(tmp_path, emulator, small(), WRONG), emulator)
    contenders = found["shapes"][0]["contenders"]
    assert contenders["ours"] == {"error": "it computes other numbers than the reference", "ratio": None}
    assert "seconds" in contenders["lut-gemm"] and "seconds" in contenders["cublas-fp16"]
    with pytest.raises(GateError, match=r"kernel of 70x512 failed on the GPU: it computes other numbers"):
        gpu_kernels.fields(found, "fixed16")


def test_here_is_measured_in_one_go(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "Nvrtc", type("OfTest", (Emulating,), {"emulator": emulator}))
    monkeypatch.setattr(driver, "lacks", lambda arch: "")
    for name, value in emulator.environment(Path("none")).items():
        monkeypatch.setenv(name, value)
    fields = gpu_kernel_bench.measure(small(baselines=False), TARGET, lambda done, total, what: None)
    assert [set(row["baselines"]) for row in fields["kernels"]] == [{"overlapping"}] * 2
    assert (fields["target"], fields["bits"], fields["device"]) == ("cuda-sm90", 2, "emulated GPU")
    monkeypatch.setenv("SHIFTADD_EMULATED_MEMORY", "5000")
    with pytest.raises(UnsupportedError, match=r"cannot be timed here: 70x512 cannot be timed: cuMem"):
        gpu_kernel_bench.measure(small(), TARGET, lambda done, total, what: None)


def test_without_cublas_the_rest_is_measured(program: Path, tmp_path: Path) -> None:
    _, found = measured(program, Emulator(tmp_path / "gpu"))
    assert "not installed: libcublas.so" in found["shapes"][0]["contenders"]["cublas-fp16"]["error"]
    assert "seconds" in found["shapes"][0]["contenders"]["ours"]


def test_the_program_says_what_is_missing(program: Path, emulator: Emulator) -> None:
    for settings, sentence in (
        ({"GPUS": 0}, "lacks a GPU that the CUDA driver knows"),
        ({"ARCH": 80}, "is for sm_90, this machine has emulated GPU (sm_80); build it for this one"),
        ({"MEMORY": 5000}, "70x512 cannot be timed: cuMemAlloc_v2 failed (CUDA_ERROR_EMULATED)"),
    ):
        environment = emulator.environment(Path("none"), **settings)
        command = [sys.executable, "-I", "-S", str(program), "-o", str(program.parent / "none.json")]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert child.returncode == 3 and sentence in child.stderr and "Traceback" not in child.stderr
    assert not (program.parent / "none.json").exists()


def test_the_command_builds_for_an_absent_gpu(tmp_path: Path) -> None:
    words = ["bench", "--kernel", "--shape", "64x256", "--bits", "2"]
    there = ["--target", "cuda-sm90", "-o", tmp_path / "out"]
    child = call_here(*words, *there, "--baselines", "--json", cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)["program"].endswith(PROGRAM)
    assert (tmp_path / "out" / PROGRAM).stat().st_size < 1 << 20
    fails(call_here(*words, *there, cwd=tmp_path), 2, "already exists")
    fails(call_here(*words, "-o", "x", "--target", "x86-64", cwd=tmp_path), 2, "-o is for GPUs")
    grouped = call_here(*words, "--target", "cuda-sm90", "--scales", "row-group", cwd=tmp_path)
    fails(grouped, 2, "measured on processors only")
    fails(call_here("bench", "--synthetic", "tiny", "-o", "x", cwd=tmp_path), 2, "add --kernel")
    if not driver.present():
        code = UnsupportedError.exit_code
        fails(call_here(*words, *there[:2], cwd=tmp_path), code, "libcuda.so.1", "With -o DIR")
        with pytest.raises(UnsupportedError, match=r"memory cannot be measured: .*libcuda.so.1"):
            Roof("sm_90")


def test_numbers_are_compared_by_the_largest() -> None:
    data = bytes.fromhex("0000803f000000c0")
    assert timing.numbers(data, "f") == [1, -2]
    assert timing.close([1.0, 2.0], [1.001, 2.0], 1e-3)
    assert not timing.close([1.0, 2.0], [1.003, 2.0], 1e-3)
    assert not timing.close([float("nan"), 2.0], [1.0, 2.0], 1e-3)
    assert issubclass(MeasureError, Exception)
