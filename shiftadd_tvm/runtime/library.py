"""Where TVM's runtime is, and how Python loads tvm_ffi without torch."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shiftadd_tvm import cpu
from shiftadd_tvm.errors import UnsupportedError

RUNTIME = "libtvm_runtime.so"
OVERRIDE = "SHIFTADD_TVM_RUNTIME"  # a path to RUNTIME where the package tvm is not installed
SPINS = "4000"  # yields of an idle thread before it sleeps: about two milliseconds


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Make `import torch` fail inside the body: tvm_ffi imports it wherever it is installed."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


def import_ffi() -> Any:
    """Return the module tvm_ffi, imported without torch."""
    with without_torch():
        return importlib.import_module("tvm_ffi")


def configure_threads(threads: int | None) -> None:
    """Set the thread pool's size; must come before the first kernel of the process runs.

    TVM halves the number of processors on x86, pins threads, and lets idle ones spin for a tenth of
    a second, on cores that others may need: all three are overridden.
    """
    os.environ["TVM_NUM_THREADS"] = str(threads or cpu.cores())
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", SPINS)


def find_runtime() -> Path:
    """Return the path of TVM's runtime library; raise `UnsupportedError` where there is none."""
    override = os.environ.get(OVERRIDE)
    spec = importlib.util.find_spec("tvm")
    folders = list(spec.submodule_search_locations or []) if spec else []
    candidates = [Path(override)] if override else [Path(f) / "lib" / RUNTIME for f in folders]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UnsupportedError(
        f"TVM's runtime {RUNTIME} was not found in {candidates or 'any installed package'}; "
        f"install apache-tvm, or set {OVERRIDE} to its path."
    )
