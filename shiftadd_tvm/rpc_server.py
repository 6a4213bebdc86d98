"""Build shiftadd-rpc-server: with it a board that runs no Python serves `tune --rpc`, `verify --rpc`.

    python -m shiftadd_tvm.rpc_server -o FOLDER [--machine aarch64]

puts the program and the four libraries that it needs into a folder that can be copied to the board.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shiftadd_tvm import runtime_libraries
from shiftadd_tvm.errors import ShiftAddError, UnsupportedError
from shiftadd_tvm.runtime import native_build

PROGRAM = "shiftadd-rpc-server"
SOURCES = native_build.SOURCES / "rpc"
LIBRARIES = (runtime_libraries.RUNTIME, runtime_libraries.FFI)
FLAGS = (
    *("-std=c++17", "-Os", "-DNDEBUG", "-s", "-Wall", "-Wextra"),
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
)
# the runtime is used through what it registers, not by name; it brings its own C++ library
LINK = ("-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", "-lpthread")


def build(folder: Path, machine: str) -> Path:
    """Write the server for `machine` into `folder`, beside its libraries; return its path.

    It is zig that compiles (for this machine: its own compiler), so that the server runs with any glibc
    since 2.28. Raises `UnsupportedError`.
    """
    here = machine == platform.machine()
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in runtime_libraries.find(machine).items():
        if name in LIBRARIES:
            shutil.copyfile(path, folder / name)
    try:
        if here and native_build.IN_TREE.is_file():
            shutil.copyfile(native_build.IN_TREE, folder / native_build.SONAME)
        else:
            native_build.build(folder / native_build.SONAME, None if here else machine)
        command = native_build.compiler(None if here else machine)
    except native_build.BuildError as error:
        raise UnsupportedError(str(error)) from error
    return link(folder / PROGRAM, folder, command)


def link(output: Path, libraries: Path, command: Sequence[str]) -> Path:
    """Compile the server by `command`, a C++ compiler, with the libraries in a folder; return `output`.

    It finds them again by where that folder lies from it. Raises `UnsupportedError`.
    """
    try:
        includes = [f"-I{path}" for path in native_build.include_folders()]
    except native_build.BuildError as error:
        raise UnsupportedError(str(error)) from error
    units = [str(path) for path in sorted(SOURCES.glob("*.cc"))]
    needed = [str(libraries / name) for name in (*LIBRARIES, native_build.SONAME)]
    found = os.path.relpath(libraries, output.parent)
    rpath = f"-Wl,-rpath,{'$ORIGIN' if found == '.' else f'$ORIGIN/{found}'}"
    words = [*command, *FLAGS, *includes, *units, rpath, *LINK, *needed, "-o", str(output)]
    child = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise UnsupportedError(f"{PROGRAM} cannot be built by {command[0]}: {reason}.")
    return output


def main(arguments: list[str]) -> int:
    """Build into a folder; print the program's path."""
    parser = argparse.ArgumentParser(prog="rpc_server", description="Build shiftadd-rpc-server.")
    parser.add_argument("-o", dest="folder", type=Path, required=True)
    parser.add_argument("--machine", choices=native_build.MACHINES, default=platform.machine())
    chosen = parser.parse_args(arguments)
    try:
        print(build(chosen.folder, chosen.machine))
    except ShiftAddError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
