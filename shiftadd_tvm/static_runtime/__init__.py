"""TVM's runtime as object files: what a model needs of it, from the sources in TVM's own wheels.

The wheels ship the sources but lack some small headers; `shims/` has ours in their place. Two units
hold all sources, so that the headers which they share are read once. Nothing of TVM is copied: the
sources are compiled where they are installed.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

from shiftadd_tvm import object_cache
from shiftadd_tvm.errors import UnsupportedError

SHIMS = Path(__file__).parent / "shims"
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


def objects(machine: str) -> list[Path]:
    """Return the object files of the runtime for `machine`, compiled the first time (a minute or two).

    Raises `UnsupportedError` without a compiler or sources, `OutputError` where it fails.
    """
    site = site_packages()
    texts = {
        unit: "".join(f'#include "{SOURCES[unit]}/{name}.cc"\n' for name in names)
        for unit, names in UNITS.items()
    }
    # the sources themselves are known by their versions
    texts = {unit: f"// {' '.join(_versions())}\n{text}" for unit, text in texts.items()}
    where = [*includes(site), f"-ffile-prefix-map={site}/="]
    return object_cache.compiled(
        "tvm-runtime", machine, texts, FLAGS, where, object_cache.files(SHIMS)
    )


def includes(site: Path) -> list[str]:
    """Return the flags by which TVM's sources find their headers, and ours."""
    folders = [SHIMS / "include", SHIMS / "include" / "tvm"]
    folders += [site / "tvm/include", *ffi_headers(site)]
    return [*(f"-I{folder}" for folder in folders), "-idirafter", str(site)]


def ffi_headers(site: Path) -> list[Path]:
    """Return the folders with the headers of tvm_ffi."""
    return [site / "tvm_ffi/include", site / "tvm_ffi/3rdparty/dlpack/include"]


def site_packages() -> Path:
    """Return the folder that holds TVM's packages; `UnsupportedError` where their sources are not."""
    specs = (importlib.util.find_spec("tvm"), importlib.util.find_spec("tvm_ffi"))
    roots = {Path(spec.origin).parent.parent for spec in specs if spec and spec.origin}
    for root in sorted(roots):
        if all((root / folder).is_dir() for folder in SOURCES.values()):
            return root
    raise UnsupportedError(
        "The sources of TVM's runtime were not found in "
        f"{', '.join(map(str, sorted(roots))) or 'any package'}; expected "
        f"{' and '.join(SOURCES.values())}, as the wheels of {' and '.join(PACKAGES)} have them; "
        "reinstall both."
    )


def _versions() -> list[str]:
    return [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
