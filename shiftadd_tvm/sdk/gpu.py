"""What a bundle for a GPU has besides: TVM's runtime for CUDA, and the runtime of CUDA that it needs.

The driver (libcuda.so.1) is the machine's own, and nothing else of CUDA is needed there.
"""

import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path

from shiftadd_tvm import runtime_libraries
from shiftadd_tvm.cuda import toolkit

PACKAGE = "nvidia-cuda-runtime"  # its licence lets programs hand the library on
TERMS = ("License.txt", "EULA.txt")  # as the package and a toolkit call them


def libraries() -> list[Path]:
    """Return both libraries; raise `UnsupportedError` without one."""
    return [runtime_libraries.find_cuda(), toolkit.find().runtime]


def add(folder: Path) -> None:
    """Copy both libraries and the terms of CUDA's into a bundle's `folder`."""
    for path in libraries():
        shutil.copyfile(path, folder / "lib" / path.name)
        (folder / "lib" / path.name).chmod(0o755)
    own = folder / "licenses" / PACKAGE
    own.mkdir(parents=True)
    for path in _terms():
        shutil.copyfile(path, own / path.name)


def _terms() -> Iterator[Path]:
    """Return the terms of the library that `libraries` found: of its package, or of its toolkit."""
    runtime = toolkit.find().runtime
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    if any(Path(str(entry.locate())) == runtime for entry in files):
        yield from (Path(str(entry.locate())) for entry in files if entry.name in TERMS)
        return
    places = (folder / name for folder in runtime.parents[:4] for name in TERMS)
    yield from (path for path in places if path.is_file())
