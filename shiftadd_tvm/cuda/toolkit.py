"""Where the parts of CUDA that compiling takes are found: NVRTC, the runtime library, its headers.

They come from the packages of the extra `cuda` (63 MB: no nvcc, no compiler of the system), else from
an installed toolkit. Nothing here needs a GPU or a driver.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from shiftadd_tvm.errors import UnsupportedError

RUNTIME = "libcudart.so.13"  # TVM's runtime for CUDA is linked to this version
COMPILER = "libnvrtc.so.13"
HEADER = "cuda_fp16.h"
TOOLKITS = ("/usr/local/cuda", "/usr/local/cuda-13")
REMEDY = "pip install 'shiftadd-tvm[cuda]'"


@dataclass(frozen=True)
class Toolkit:
    """The files that compiling for CUDA takes."""

    compiler: Path
    runtime: Path
    headers: Path  # the folder


def _roots() -> list[Path]:
    """Return the folders that may hold `lib` and `include`: packages first, then toolkits."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    named = os.environ.get("CUDA_HOME")
    return [
        *(Path(folder) / "cu13" for folder in folders),
        *([Path(named)] if named else []),
        *map(Path, TOOLKITS),
    ]


def _find(name: str, folders: tuple[str, ...]) -> Path | None:
    paths = (root / folder / name for root in _roots() for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def find_runtime() -> Path | None:
    """Return CUDA's runtime library; None where neither a package nor a toolkit has it."""
    return _find(RUNTIME, ("lib", "lib64"))


def find() -> Toolkit:
    """Return what compiling takes; `UnsupportedError` names what is missing and the remedy."""
    compiler, headers = _find(COMPILER, ("lib", "lib64")), _find(HEADER, ("include",))
    runtime = find_runtime()
    parts = {COMPILER: compiler, RUNTIME: runtime, HEADER: headers}
    missing = [name for name, path in parts.items() if path is None]
    if compiler is None or runtime is None or headers is None:
        raise UnsupportedError(
            f"Kernels for CUDA cannot be compiled here: {', '.join(missing)} of CUDA 13 was found "
            f"neither in a package nor in {' or '.join(TOOLKITS)}; {REMEDY} brings it (no GPU is needed)."
        )
    return Toolkit(compiler, runtime, headers.parent)
