"""Run kernels that are compiled for another machine: as one static program, by qemu or Bochs."""

import importlib.util
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import bochs
import numpy as np
import tvm
import tvm_ffi.libinfo
from tvm.ir import IRModule
from tvm.tirx import PrimFunc

from shiftadd_tvm import pipeline
from shiftadd_tvm.backend import Backend

HARNESS = Path(__file__).with_name("emulated.c")
TYPE_CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's
NUMBER = -1  # in place of the number of axes
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


def compile_object(functions: Mapping[str, PrimFunc], target: Backend, path: Path) -> Path:
    """Write an object file for `target` with the operators, scheduled, under these names."""
    named = {name: made.with_attr("global_symbol", name) for name, made in functions.items()}
    scheduled, _ = pipeline.apply_schedules(IRModule(named), target)
    compiled = tvm.compile(scheduled, tvm.target.Target(target.target))
    compiled.mod.write_to_file(str(path), "o")
    return path


def _operand(value: np.ndarray | int) -> bytes:
    """Return an operand as `emulated.c` reads it: a tensor, or a number of no axes at all."""
    if not isinstance(value, np.ndarray):
        return struct.pack("<4q", TYPE_CODES["i"], 64, NUMBER, value)
    code, bits = TYPE_CODES[value.dtype.kind], value.dtype.itemsize * 8
    head = struct.pack(f"<{3 + value.ndim}q", code, bits, value.ndim, *value.shape)
    return head + value.tobytes()


class Program:
    """Kernels linked into a program for another machine."""

    def __init__(self, functions: Mapping[str, PrimFunc], target: Backend) -> None:
        """Compile and link, in a folder that goes when the program goes."""
        self._kept = tempfile.TemporaryDirectory()
        self._folder, self._target = Path(self._kept.name), target
        self._functions, self._others = functions, dict[str, Program]()
        names = " ".join(f"X({name})" for name in functions)
        command = [
            *compiler(target.machine),
            *("-static", "-O1", "-std=c11", f"-DKERNELS(X)={names}"),
            *("-I", tvm_ffi.libinfo.find_include_path()),
            *("-I", tvm_ffi.libinfo.find_dlpack_include_path()),
            *(str(HARNESS), str(compile_object(functions, target, self._folder / "kernels.o"))),
            *("-lm", "-o", str(self._folder / "program")),
            *(bochs.BUILD if target.machine == bochs.MACHINE else ()),
        ]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        assert child.returncode == 0, child.stderr

    def run(
        self, name: str, arrays: Sequence[np.ndarray], like: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Return what a kernel computes from `arrays`, as arrays shaped `like` these."""
        garbage = [
            np.full(a.nbytes, GARBAGE, np.uint8).view(a.dtype).reshape(a.shape) for a in like
        ]
        return self.call(name, [*arrays, *garbage], len(like))

    def call(
        self, name: str, operands: Sequence[np.ndarray | int], results: int
    ) -> list[np.ndarray]:
        """Return the arrays among the last `results` operands, as a kernel leaves them."""
        given, made = (self._folder / f"{name}.{end}" for end in ("in", "out"))
        parts = [struct.pack("<2q", len(operands), results), *map(_operand, operands)]
        given.write_bytes(b"".join(parts))
        made.unlink(missing_ok=True)
        try:
            self._emulate(name, given, made)
        except bochs.RefusedGather:
            return self._without_gathers(name).call(name, operands, results)
        content, found = made.read_bytes(), []
        for array in operands[len(operands) - results :]:
            if isinstance(array, np.ndarray):
                part, content = content[: array.nbytes], content[array.nbytes :]
                found.append(np.frombuffer(part, array.dtype).reshape(array.shape))
        assert not content
        return found

    def _without_gathers(self, name: str) -> "Program":
        target = bochs.without_gathers(self._target)
        assert target != self._target, f"{name} gathers all the same"
        if name not in self._others:
            self._others[name] = Program({name: self._functions[name]}, target)
        return self._others[name]

    def _emulate(self, name: str, operands: Path, results: Path) -> None:
        program, command = self._folder / "program", emulator(self._target.machine)
        if self._target.machine == bochs.MACHINE:
            bochs.run(command, program, name, operands, results)
            return
        words = [command, program, name, operands, results]
        child = subprocess.run(words, capture_output=True, text=True, check=False)
        assert child.returncode == 0, child.stderr
