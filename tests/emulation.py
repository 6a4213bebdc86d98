"""Run kernels that are compiled for another machine: as one static program, by qemu or Bochs."""

import dataclasses
import importlib.util
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import bochs
import kernels
import numpy as np
import tvm
import tvm_ffi.libinfo
from tvm import tirx
from tvm.ir import IRModule

from shiftadd_tvm import pipeline
from shiftadd_tvm.backend import Backend

HARNESS = Path(__file__).with_name("emulated.c")
TYPE_CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's
GARBAGE = 0xA5  # what results hold before: nobody may count on zeros


def compiler(machine: str) -> list[str]:
    """Return the command that compiles C to static programs for Linux; empty if there is none."""
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl"]
    found = shutil.which(f"{machine}-linux-gnu-gcc")
    return [found] if found else []


def emulator(machine: str) -> str:
    """Return what emulates `machine`: Bochs, or qemu's user mode; empty if there is none."""
    if machine == bochs.MACHINE:
        return shutil.which("bochs") or ""
    return shutil.which(f"qemu-{machine}") or shutil.which(f"qemu-{machine}-static") or ""


def lacks(machine: str) -> str:
    """Return what is missing to emulate `machine`, in words; empty if nothing is."""
    if not emulator(machine):
        name = "bochs" if machine == bochs.MACHINE else "qemu-user"
        return f"nothing emulates {machine} (Debian: apt-get install {name})"
    return "" if compiler(machine) else f"nothing compiles C for {machine} (pip install ziglang)"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An operator to compile, for arrays of these shapes (first axes of `symbolic` ones vary)."""

    op: str
    compute: object
    arrays: Sequence[np.ndarray]
    symbolic: Sequence[int] = ()

    def function(self) -> tirx.PrimFunc:
        """Return the operator as its tensor expression says it."""
        module = kernels.op_module(self.op, self.compute, self.arrays, self.symbolic)
        (found,) = (f for _, f in module.functions_items() if isinstance(f, tirx.PrimFunc))
        return found


def compile_object(kernels_: Mapping[str, Kernel], target: Backend, path: Path) -> Path:
    """Write an object file for `target` with the scheduled kernels, under these names."""
    functions = {
        name: kernel.function().with_attr("global_symbol", name)
        for name, kernel in kernels_.items()
    }
    scheduled, _ = pipeline.apply_schedules(IRModule(functions), target)
    compiled = tvm.compile(scheduled, tvm.target.Target(target.target))
    compiled.mod.write_to_file(str(path), "o")
    return path


class Program:
    """Kernels linked into a program for another machine."""

    def __init__(self, kernels_: Mapping[str, Kernel], target: Backend, folder: Path) -> None:
        """Compile and link; `folder` holds the program and what it reads and writes."""
        self._folder, self._machine = folder, target.machine
        names = " ".join(f"X({name})" for name in kernels_)
        command = [
            *compiler(target.machine),
            *("-static", "-O1", "-std=c11", f"-DKERNELS(X)={names}"),
            *("-I", tvm_ffi.libinfo.find_include_path()),
            *("-I", tvm_ffi.libinfo.find_dlpack_include_path()),
            *(str(HARNESS), str(compile_object(kernels_, target, folder / "kernels.o"))),
            *("-lm", "-o", str(folder / "program")),
            *(bochs.BUILD if target.machine == bochs.MACHINE else ()),
        ]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        assert child.returncode == 0, child.stderr

    def run(
        self, name: str, arrays: Sequence[np.ndarray], like: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Return what a kernel computes from `arrays`, as arrays shaped `like` these."""
        operands, results = (self._folder / f"{name}.{end}" for end in ("in", "out"))
        garbage = [
            np.full(a.nbytes, GARBAGE, np.uint8).view(a.dtype).reshape(a.shape) for a in like
        ]
        with operands.open("wb") as file:
            file.write(struct.pack("<2q", len(arrays) + len(like), len(like)))
            for array in (*arrays, *garbage):
                code, bits = TYPE_CODES[array.dtype.kind], array.dtype.itemsize * 8
                file.write(struct.pack("<3q", code, bits, array.ndim))
                file.write(struct.pack(f"<{array.ndim}q", *array.shape) + array.tobytes())
        self._emulate(name, operands, results)
        content, found = results.read_bytes(), []
        for array in like:
            part, content = content[: array.nbytes], content[array.nbytes :]
            found.append(np.frombuffer(part, array.dtype).reshape(array.shape))
        assert not content
        return found

    def _emulate(self, name: str, operands: Path, results: Path) -> None:
        program, command = self._folder / "program", emulator(self._machine)
        if self._machine == bochs.MACHINE:
            bochs.run(command, program, name, operands, results)
            return
        words = [command, program, name, operands, results]
        child = subprocess.run(words, capture_output=True, text=True, check=False)
        assert child.returncode == 0, child.stderr
