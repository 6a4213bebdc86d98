"""TVM's runtime as object files: what a model needs of it, from the sources in TVM's own wheels.

The wheels ship the sources but lack some small headers; `shims/` has ours in their place. Two units
hold all sources, so that the headers they share are read once; they are compiled for size, once for
each machine, compiler and version, and kept in the user's cache (`SHIFTADD_CACHE` names another).
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shiftadd_tvm.errors import OutputError, UnsupportedError
from shiftadd_tvm.files import user_cache
from shiftadd_tvm.toolchain import find_compiler

SHIMS = Path(__file__).parent / "shims"
NAME = "static_runtime"  # of the folder in the cache
# What a virtual machine on a processor needs; each list is compiled as one unit.
UNITS = {
    "tvm": (
        *("tensor", "thread_pool", "threading_backend", "device_api", "cpu_device_api"),
        *("workspace_pool", "logging", "module", "file_utils", "memory/memory_manager"),
        *("vm/bytecode", "vm/executable", "vm/vm", "vm/builtin"),
    ),
    "tvm_ffi": (
        *("object", "error", "function", "tensor", "dtype", "container", "init_once"),
        *("custom_allocator", "backtrace", "extra/module", "extra/library_module"),
        *("extra/library_module_system_lib", "extra/library_module_dynamic_lib"),
        *("extra/env_context", "extra/env_c_api", "extra/json_parser", "extra/json_writer"),
    ),
}
SOURCES = {"tvm": "tvm/src/runtime", "tvm_ffi": "tvm_ffi/src/ffi"}
PACKAGES = ("apache-tvm", "apache-tvm-ffi")
FLAGS = (
    *("-std=c++17", "-Os", "-fPIC", "-w", "-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-ffunction-sections", "-fdata-sections", "-DNDEBUG"),
    # no signal handlers and no reading of debug information inside someone's program
    *("-DTVM_FFI_USE_LIBBACKTRACE=0", "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0"),
)


def site_packages() -> Path:
    """Return the folder that holds TVM's packages; `UnsupportedError` where their sources are not."""
    found = importlib.util.find_spec("tvm"), importlib.util.find_spec("tvm_ffi")
    roots = {Path(spec.origin).parent.parent for spec in found if spec and spec.origin}
    for root in roots:
        if all((root / folder).is_dir() for folder in SOURCES.values()):
            return root
    raise UnsupportedError(
        f"The sources of TVM's runtime were not found in {', '.join(map(str, roots)) or 'any package'}"
        f"; expected {' and '.join(SOURCES.values())}, as the wheels of {' and '.join(PACKAGES)} "
        "have them; reinstall both."
    )


def objects(machine: str) -> list[Path]:
    """Return the object files of the runtime for `machine`, compiled if the cache has none.

    Raises `UnsupportedError` without a compiler or sources, `OutputError` where it fails.
    """
    command = find_compiler(machine)
    folder = cache() / _key(command)
    if not folder.is_dir():
        _compile(command, site_packages(), folder)
    return [folder / f"{name}.o" for name in UNITS]


def cache() -> Path:
    """Return where compiled runtimes are kept."""
    named = os.environ.get("SHIFTADD_CACHE")
    return (Path(named).resolve() if named else user_cache()) / NAME


def _key(command: Sequence[str]) -> str:
    """Return a hash of everything that decides what the objects are."""
    shims = sorted(path for path in SHIMS.rglob("*") if path.is_file())
    parts: list[object] = [command, FLAGS, UNITS, version(command)]
    parts += [importlib.metadata.version(package) for package in PACKAGES]
    parts += [path.read_text("utf-8") for path in shims]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def version(command: Sequence[str]) -> str:
    """Return what a compiler says of itself."""
    child = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return child.stdout


def includes(site: Path) -> list[str]:
    """Return the flags that find TVM's headers and ours, and keep the folder's name out of objects."""
    folders = [SHIMS / "include", SHIMS / "include" / "tvm"]
    folders += [site / "tvm/include", site / "tvm_ffi/include"]
    folders += [site / "tvm_ffi/3rdparty/dlpack/include"]
    flags = [f"-I{folder}" for folder in folders]
    return [*flags, "-idirafter", str(site), f"-ffile-prefix-map={site}/="]


def _compile(command: Sequence[str], site: Path, target: Path) -> None:
    """Compile both units side by side, and publish them together."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be written: {error.strerror}.") from error
    try:
        children = [_start(command, site, staging, unit) for unit in UNITS]
        for child in children:
            message = child.communicate()[0]
            if child.returncode:
                lines = [line for line in message.splitlines() if "error" in line] or ["no message"]
                raise OutputError(
                    f"TVM's runtime cannot be compiled by {command[0]}: {lines[0].strip()}; expected "
                    "a compiler for C++17 (g++ 9, clang 10 or newer)."
                )
        if not target.is_dir():  # another process may have been faster
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _start(
    command: Sequence[str], site: Path, folder: Path, unit: str
) -> "subprocess.Popen[str]":
    source = folder / f"{unit}.cc"
    lines = [f'#include "{SOURCES[unit]}/{name}.cc"' for name in UNITS[unit]]
    source.write_text("\n".join(lines) + "\n")
    return subprocess.Popen(
        [*command, *FLAGS, *includes(site), "-c", source.name, "-o", f"{unit}.o"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


