"""The child process that turns a lowered module into a library with machine code for a GPU.

TVM's runtime for CUDA is linked to the driver, and without it TVM writes CUDA source into a library. So
where there is no driver this child, and nobody else, runs with a stand-in: a library by the driver's
name whose every function fails. Nothing is run on a GPU while compiling, so none of them is called.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from shiftadd_tvm.cuda import driver, nvrtc, toolkit
from shiftadd_tvm.errors import OutputError, ShiftAddError
from shiftadd_tvm.toolchain import Linker

SOURCE_MARK = b"__global__"  # stands in every CUDA source, and in no machine code
STAND_IN = "stand_in.cc"
FAILURE = 100  # CUDA_ERROR_NO_DEVICE
DUMPED = {"source": "kernels.cu", "ptx": "kernels.ptx", "log": "kernels.log"}
MODULE, ANSWER = "module.json", "kernels.json"


def build(
    module: Any,
    target: dict[str, object],
    library: Path,
    linker: Linker,
    dump: Path | None = None,
    *,
    overlap: bool = False,
) -> None:
    """Write `library` of a lowered Relax module, and into the folder `dump` what was compiled; `overlap`
    is that of the preset (`overlapping_launches.py`).

    Raises `UnsupportedError` without CUDA's compiler, `OutputError` where it or the linker fails.
    """
    from tvm_ffi import serialization

    found = toolkit.find()
    with tempfile.TemporaryDirectory(prefix="shiftadd-cuda-") as name:
        folder = Path(name)
        (folder / MODULE).write_text(serialization.to_json_graph_str(module), encoding="utf-8")
        request: dict[str, object] = {
            "target": target,
            "library": str(library),
            "linker": list(linker.command),
            "overlap": overlap,
        }
        _run_child(folder, request, found, linker)
        answer = json.loads((folder / ANSWER).read_text("utf-8"))
    if SOURCE_MARK in library.read_bytes():
        raise OutputError(f"{library} holds CUDA source instead of machine code; please report it.")
    for kind, name in DUMPED.items() if dump else ():
        (Path(str(dump)) / name).write_text(answer[kind], encoding="utf-8")


def _run_child(
    folder: Path, request: dict[str, object], found: toolkit.Toolkit, linker: Linker
) -> None:
    paths = [str(found.runtime.parent), os.environ.get("LD_LIBRARY_PATH", "")]
    if not driver.present():
        _write_stand_in(folder, linker)
        paths.insert(0, str(folder))
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths))}
    child = subprocess.run(
        [sys.executable, "-m", "shiftadd_tvm.cuda.codegen", str(folder)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if child.returncode:
        lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        raise OutputError(lines[-1] if child.returncode == OutputError.exit_code else _crash(lines))


def _crash(lines: list[str]) -> str:
    return f"The kernels for CUDA cannot be compiled: {lines[-1]}; please report it."


def _write_stand_in(folder: Path, linker: Linker) -> None:
    functions = "".join(
        f"int {name}(void) {{ return {FAILURE}; }}\n" for name in driver.ENTRY_POINTS
    )
    source = folder / STAND_IN
    source.write_text(f'extern "C" {{\n{functions}}}\n', encoding="utf-8")
    linker.link(folder / driver.DRIVER, [source])


def _compile(folder: Path, request: dict[str, Any]) -> None:
    """Do the work of the child."""
    import tvm
    import tvm_ffi
    from tvm import relax
    from tvm_ffi import serialization

    compiler = nvrtc.Nvrtc(toolkit.find())
    target = tvm.target.Target(request["target"])
    arch, answers = str(request["target"]["arch"]), []

    def compile_kernels(source: str) -> bytes:
        compiled = compiler.compile(source, arch)
        answers.append({"source": source, "ptx": compiled.ptx, "log": compiled.log})
        return compiled.cubin

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_kernels, override=True)
    # not by TVM's own reader, which spends a quarter of all time on modules of older versions
    module = serialization.from_json_graph_str((folder / MODULE).read_text("utf-8"))
    finished, kernels = tvm.transform.Sequential([]), "default"
    if request["overlap"]:
        from shiftadd_tvm import overlapping_launches

        kernels = overlapping_launches.register(module)
    with target:
        executable = relax.build(module, target, relax_pipeline=finished, tir_pipeline=kernels)
    linker = Linker(tuple(request["linker"]))

    def link(output: str, objects: list[str], options: Any = None) -> None:
        linker.link(Path(output), objects)

    executable.export_library(request["library"], fcompile=link)
    joined = {key: "\n".join(a[key] for a in answers) for key in ("source", "ptx", "log")}
    (folder / ANSWER).write_text(json.dumps(joined), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run as the child of `build`: a request on stdin, files in the folder, errors on stderr."""
    from shiftadd_tvm.runtime.library import without_torch

    try:
        with without_torch():
            _compile(Path(arguments[0]), json.load(sys.stdin))
    except ShiftAddError as error:
        print(error, file=sys.stderr)
        return OutputError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
