"""What links a library: this machine's own C++ compiler, or one that links for another machine."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shiftadd_tvm import cpu
from shiftadd_tvm.errors import OutputError, UnsupportedError

NATIVE = ("g++", "c++", "clang++")
ZIG = "ziglang"
GLIBC = "2.28"  # the oldest that the libraries need which zig links: that of TVM's own wheels
# no build id and no symbol table: both would record how the bytes were made
SHARED = ("-shared", "-fPIC", "-s", "-Wl,--build-id=none")


@dataclass(frozen=True)
class Linker:
    """A program that makes a shared library of object files, and what it is called with."""

    command: tuple[str, ...]

    def link(self, output: Path, objects: Sequence[str | Path]) -> None:
        """Write the shared library `output`, stripped; `OutputError` says why it cannot be made."""
        files = [str(path) for path in objects]
        problem = f"{output.name} cannot be linked by {self.command[0]}"
        try:
            child = subprocess.run(
                [*self.command, *SHARED, "-o", str(output), *files],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise OutputError(f"{problem}: {error.strerror}.") from error
        if child.returncode:
            lines = child.stdout.strip().splitlines() or [f"exit status {child.returncode}"]
            raise OutputError(f"{problem}: {lines[-1]}.")


def find_linker(machine: str) -> Linker:
    """Return what links libraries for `machine` (as the kernel names it); `UnsupportedError` if none.

    For another machine than this one that is Debian's cross compiler, or zig from its Python package,
    which brings the other machine's C library.
    """
    if machine == cpu.machine():
        return _native()
    if found := shutil.which(f"{machine}-linux-gnu-g++"):
        return Linker((found,))
    if importlib.util.find_spec(ZIG):
        return Linker((*zig(machine, "cc"), "-lm"))
    raise UnsupportedError(
        f"No linker for {machine} was found on this {cpu.machine()} machine to link model.so: expected "
        f"{machine}-linux-gnu-g++ on the PATH or the Python package {ZIG}; install one of them "
        f"(pip install 'shiftadd-tvm[arm]', or Debian: apt-get install "
        f"g++-{machine.replace('_', '-')}-linux-gnu)."
    )


def find_compiler(machine: str) -> tuple[str, ...]:
    """Return the C++ compiler that goes with `find_linker`, which also links what it compiled."""
    command = find_linker(machine).command
    return zig(machine, "c++") if ZIG in command else command


def archiver(machine: str) -> tuple[str, ...]:
    """Return the program that makes static archives, of the same make as `find_compiler`."""
    command = find_compiler(machine)
    if ZIG in command:
        return (sys.executable, "-m", ZIG, "ar")
    name = "ar" if machine == cpu.machine() else f"{machine}-linux-gnu-ar"
    found = shutil.which(name)
    if found is None:
        raise UnsupportedError(
            f"No {name} was found on the PATH to make a static archive; install it "
            "(Debian: apt-get install binutils)."
        )
    return (found,)


def zig(machine: str, tool: str) -> tuple[str, ...]:
    """Return zig's C or C++ compiler for another machine; it brings that machine's libraries."""
    return (sys.executable, "-m", ZIG, tool, "-target", f"{machine}-linux-gnu.{GLIBC}")


def _native() -> Linker:
    found = next((path for name in NATIVE if (path := shutil.which(name))), None)
    if found is None:
        raise UnsupportedError(
            f"No C++ compiler was found to link model.so: expected {', '.join(NATIVE[:-1])} or "
            f"{NATIVE[-1]} on the PATH; install one (Debian: apt-get install g++)."
        )
    return Linker((found,))
