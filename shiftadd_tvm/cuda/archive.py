"""Archives that run where the GPU is: machine code, what it is given and what it must give, a program.

    __main__.py, shiftadd_tvm/cuda/*.py    the program, which needs a driver and Python alone
    <...>.cubin, <...>.bin                 machine code; arguments and results
"""

import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import tvm
import tvm_ffi
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.cuda import (
    contents,
    cublas,
    gpu,
    measuring,
    nvrtc,
    reading,
    timing,
    toolkit,
    uploaded,
)

PARTS = (contents, cublas, gpu, measuring, reading, timing, uploaded)
SIGNATURE = re.compile(r'extern "C" __global__ void [^;{]*?(\w+)\(([^)]*)\) \{')
EXTENT = re.compile(r'T\.launch_thread\("([\w.]+)", (\d+)\)')
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same file for the same contents
MAIN = "import sys\n\nfrom {} import main\n\nsys.exit(main(sys.argv[1:]))\n"


@dataclass(frozen=True)
class Launch:
    """A kernel and how it is launched; `order` names the arguments of the function that it takes."""

    kernel: str
    grid: list[int]
    block: list[int]
    order: list[int]


@dataclass(frozen=True)
class Compiled:
    """Machine code and its launches, one after the other."""

    cubin: bytes
    launches: list[Launch]

    def fields(self) -> list[dict[str, Any]]:
        """Return the launches as an archive holds them."""
        return [asdict(launch) for launch in self.launches]


def compiled(function: PrimFunc, backend: Backend) -> Compiled:
    """Return the machine code of a scheduled function; needs no driver."""
    # where a driver is, TVM asks for machine code: it gets none, since its source is compiled below
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", lambda _: nvrtc.ELF, override=True)
    named = tvm.ir.IRModule({"main": function.with_attr("global_symbol", "main")})
    with tvm.target.Target(backend.target) as target:
        module = tvm.compile(named, target).mod
    source = module.imports[0].inspect_source()
    found = sorted(SIGNATURE.findall(source))  # main_kernel, main_kernel_1, ...
    known = [parameter.name for parameter in function.params]
    launches = [
        Launch(
            name,
            [extents.get(f"blockIdx.{axis}", 1) for axis in "xyz"],
            [extents.get(f"threadIdx.{axis}", 1) for axis in "xyz"],
            [known.index(one) for one in re.findall(r"(\w+)_ptr\b", given)],
        )
        for (name, given), extents in zip(found, _extents(function, len(found)), strict=True)
    ]
    return Compiled(nvrtc.Nvrtc(toolkit.find()).compile(source, backend.device).cubin, launches)


def _extents(function: PrimFunc, kernels: int) -> list[dict[str, int]]:
    """Return the extents of each kernel's axes; of several kernels, each binds an axis once."""
    found: list[dict[str, int]] = [{}]
    for axis, extent in EXTENT.findall(function.script()):
        if axis in found[-1] and kernels > 1:
            found.append({})
        found[-1][axis] = int(extent)
    return found


class Archive:
    """An archive in the making."""

    def __init__(self, file: zipfile.ZipFile, program: ModuleType) -> None:
        """Begin with the program, one of `PARTS` that has a `main`."""
        self._file = file
        self.add("__main__.py", MAIN.format(program.__name__).encode())
        for package in ("shiftadd_tvm", "shiftadd_tvm/cuda"):
            self.add(f"{package}/__init__.py", b"")
        for part in PARTS:
            name = part.__name__.replace(".", "/")
            self.add(f"{name}.py", Path(str(part.__file__)).read_bytes())

    def add(self, name: str, data: bytes) -> str:
        """Add a file and return its name."""
        info = zipfile.ZipInfo(name, EPOCH)
        info.compress_type = zipfile.ZIP_DEFLATED
        self._file.writestr(info, data)
        return name
