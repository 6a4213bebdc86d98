"""What `doctor` and `targets` say: whether this machine has what the verbs need, and the remedies.

What is imported is imported in a child process: a broken library costs a line, not the doctor.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from shiftadd_tvm import backend, cpu, timing_model, toolchain
from shiftadd_tvm.cuda import driver, toolkit
from shiftadd_tvm.errors import ShiftAddError

TVM_SERIES = "0.27."
FFI_VERSION = "0.1.14.post1"
LEAST_MEMORY = 2 << 30  # of a small model's quantization
TIMEOUT = 120  # seconds for an import


@dataclass(frozen=True)
class Check:
    """One finding; `optional` ones do not decide the verdict."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    optional: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return the check as the command line prints it."""
        return asdict(self)


def examine() -> list[Check]:
    """Return every check; none of them raises."""
    checks: list[Callable[[], Check]] = [
        _python,
        lambda: _package("apache-tvm", "tvm", "compile", TVM_SERIES),
        lambda: _package("apache-tvm-ffi", "tvm_ffi", "compile and run", FFI_VERSION),
        _runtime,
        lambda: _package("torch", "torch", "quantize and eval of weights"),
        lambda: _package("transformers", "transformers", "quantize and eval of weights"),
        lambda: _package("tokenizers", "tokenizers", "run, chat and eval"),
        _compiler,
        _processor,
        _memory,
        _cross_linker,
        _timing_model,
        _cuda_compiler,
        _gpu,
        lambda: _package("gguf", "gguf", "GGUF checkpoints", extra="gguf"),
        lambda: _package("pyelftools", "elftools", "inspect --ops", extra="inspect"),
        lambda: _package("iced-x86", "iced_x86", "inspect --ops of x86", extra="inspect"),
        lambda: _package("capstone", "capstone", "inspect --ops of aarch64", extra="inspect"),
    ]
    return [check() for check in checks]


def _python() -> Check:
    found = platform.python_version()
    return Check(
        "python",
        sys.version_info >= (3, 11),
        f"{found} ({sys.executable})",
        "install Python 3.11 or newer and make a new environment",
    )


def _package(name: str, module: str, use: str, wanted: str = "", extra: str = "") -> Check:
    pin = f"=={wanted}*" if wanted.endswith(".") else f"=={wanted}" if wanted else ""
    what = f"shiftadd-tvm[{extra}]" if extra else f"{name}{pin}"
    remedy = f"pip install '{what}' (needed for {use})"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", remedy, bool(extra))
    if wanted and not (found.startswith(wanted) if wanted.endswith(".") else found == wanted):
        return Check(name, False, f"{found}, expected {pin[2:]}", remedy, bool(extra))
    problem = _child(f"import {module}")
    detail = found if problem is None else f"{found}, but it cannot be imported: {problem}"
    return Check(name, problem is None, detail, remedy, bool(extra))


def _child(code: str) -> str | None:
    """Run `code` in a fresh interpreter; return the last line of its complaint, None if it is well."""
    environment = {**os.environ, "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1"}
    try:
        child = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if child.returncode == 0:
        return None
    return (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]


def _runtime() -> Check:
    problem = _child("from shiftadd_tvm.runtime import native; native.load_runtime()")
    return Check(
        "tvm runtime",
        problem is None,
        problem or "libshiftadd and TVM's runtime load without torch and the compiler",
        "pip install --force-reinstall apache-tvm (needed to run artifacts)",
    )


def _compiler() -> Check:
    return _linker("c++ compiler", cpu.machine(), "install one, such as: apt-get install g++")


def _cross_linker() -> Check:
    machine = next(m for m in ("aarch64", "x86_64") if m != cpu.machine())
    remedy = "pip install 'shiftadd-tvm[arm]'"
    return _linker(f"linker for {machine}", machine, remedy, optional=True)


def _timing_model() -> Check:
    remedy = "apt-get install llvm-19 (needed for tune for ARM without a board)"
    try:
        found = timing_model.find()
    except ShiftAddError as error:
        return Check(timing_model.NAME, False, str(error), remedy, optional=True)
    return Check(timing_model.NAME, True, f"{found.version} ({found.program})", remedy, True)


def _cuda_compiler() -> Check:
    remedy = f"{toolkit.REMEDY} (needed for compile for CUDA; it takes no GPU)"
    try:
        found = toolkit.find()
    except ShiftAddError as error:
        return Check("cuda compiler", False, str(error), remedy, True)
    return Check("cuda compiler", True, str(found.compiler), remedy, True)


def _gpu() -> Check:
    remedy = "install the GPU's driver (compile for CUDA works without, on any machine)"
    found = driver.gpu()
    if found is None:
        detail = "a driver, but no GPU" if driver.present() else "no CUDA driver"
        return Check("gpu", False, detail, remedy, True)
    memory = f"{found.memory / 2**30:.1f} GiB"
    return Check("gpu", True, f"{found.name}, {found.arch}, {memory}", remedy, True)


def _linker(name: str, machine: str, remedy: str, *, optional: bool = False) -> Check:
    use = f"(needed for compile for {machine}: it links model.so)"
    try:
        command = toolchain.find_linker(machine).command
    except ShiftAddError as error:
        return Check(name, False, str(error), f"{remedy} {use}", optional)
    return Check(name, True, " ".join(command), f"{remedy} {use}", optional)


def _processor() -> Check:
    try:
        preset = backend.detect().name
    except ShiftAddError as error:
        return Check("processor", False, str(error), "compile on another machine, run there")
    return Check("processor", True, f"{cpu.machine()}, {cpu.cores()} cores: preset {preset}")


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Check(
        "memory",
        total >= LEAST_MEMORY,
        f"{total / 2**30:.1f} GiB",
        "quantize needs 2 GiB beside its largest layer; use a larger machine",
    )


def presets() -> list[dict[str, object]]:
    """Return every target preset: what it needs, whether it runs here, which one is the default."""
    known = backend.presets()
    default = next((name for name, preset in known.items() if preset.meant_for_here()), None)
    return [
        {
            "name": name,
            "family": preset.family,
            "machine": preset.machine,
            "features": list(preset.features),
            "runs_here": preset.runs_here(),
            "missing": preset.missing_features(),
            "default": name == default,
        }
        for name, preset in known.items()
    ]
