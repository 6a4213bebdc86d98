"""A GPU on the processor: generated CUDA source compiled for it, and a driver that runs the kernels.

`Emulator` builds both libraries of the driver once; `kernels` compiles the source of a library. A child
process whose loader finds them runs an artifact, or an operator, as it is: by TVM's runtime for CUDA.
"""

import os
import re
import subprocess
from pathlib import Path

from shiftadd_tvm.cuda import toolkit

HERE = Path(__file__).parent
# -fno-strict-aliasing: generated code reads numbers by their bits; no contraction: as the references
FLAGS = ("-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off")
VERSIONS = "libcudart.so.13 { global: cuda*; local: *; };\n"
KERNEL = re.compile(r'^extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(', re.M)
DYNAMIC = re.compile(r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];")

# what the headers of CUDA want of a compiler's own, which is another package
HOST_DEFINES = """#pragma once
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __location__(a)
#define __builtin_align__(a) __attribute__((aligned(a)))
#define __align__(a) __attribute__((aligned(a)))
#define __specialization_static
"""


def _build(output: Path, *arguments: str) -> None:
    command = ["g++", *FLAGS, *arguments, "-o", str(output)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]


class Emulator:
    """A folder with `libcuda.so.1` and `libcudart.so.13` that run kernels on the processor."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        if (folder / toolkit.RUNTIME).exists():  # a parent built it
            return
        script = folder / "versions"
        script.write_text(VERSIONS)
        (folder / "crt").mkdir(exist_ok=True)
        (folder / "crt" / "host_defines.h").write_text(HOST_DEFINES)
        folders = (f"-I{toolkit.find().headers}", f"-I{folder}")
        parts = (str(HERE / "cuda_driver.cc"), *folders, "-ldl")
        _build(folder / "libcuda.so.1", *parts, "-Wl,-soname,libcuda.so.1")
        soname = f"-Wl,-soname,{toolkit.RUNTIME},--version-script,{script}"
        _build(folder / toolkit.RUNTIME, *parts, soname)

    def kernels(self, source: str, name: str, *defines: str) -> Path:
        """Return a library of the kernels of CUDA `source`; `defines` change the emulation."""
        (self.folder / "empty").mkdir(exist_ok=True)
        for header in ("cuda.h", "cuda_fp16.h", "math_constants.h"):
            (self.folder / "empty" / header).touch()
        text = DYNAMIC.sub(r"\1* \2 = (\1*)emulation::dynamic_shared();", source)
        names = sorted(set(KERNEL.findall(source)))
        entry = '{{"{0}", emulation::Of<{0}>::run, emulation::Of<{0}>::arguments}},\n'
        table = "".join(entry.format(name) for name in names)
        tail = (
            f'extern "C" const emulation::Entry emulated_kernels[] = {{\n{table}{{0, 0, 0}}}};\n'
            'extern "C" void emulated_launch(emulation::Runner run, Dim* grid, Dim* block, size_t shared,'
            " void** given) { emulation::launch(run, *grid, *block, shared, given); }\n"
        )
        path = self.folder / f"{name}.cc"
        path.write_text(f'#include "cuda_emulated.h"\n{text}\n{tail}')
        output = self.folder / f"{name}.so"
        folders = (f"-I{HERE}", f"-I{self.folder / 'empty'}")
        _build(output, *(f"-D{d}" for d in defines), *folders, str(path), str(HERE / "cuda_emulated.cc"))
        return output

    def cublas(self) -> None:
        """Add a cuBLAS to what a child finds."""
        _build(self.folder / "libcublas.so.13", str(HERE / "cuda_cublas.cc"), "-ldl")

    def environment(self, kernels: Path, **settings: object) -> dict[str, str]:
        """Return the environment of a child that has this GPU; settings: ARCH, MEMORY, GPUS."""
        more = {f"SHIFTADD_EMULATED_{key}": str(value) for key, value in settings.items()}
        paths = f"{self.folder}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        emulated = {"LD_LIBRARY_PATH": paths, "SHIFTADD_EMULATED_KERNELS": str(kernels)}
        return {**os.environ, **emulated, **more}
