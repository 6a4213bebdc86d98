"""libshiftadd for a machine: the one that the package has, or one that is built from its sources."""

import re
from pathlib import Path

from shiftadd_tvm import cpu, object_cache
from shiftadd_tvm.errors import OutputError
from shiftadd_tvm.runtime import native_build

LINKED = Path(__file__).parent / "linked"
HEADERS = native_build.SOURCES / "include"
SECTIONS = ("-ffunction-sections", "-fdata-sections")  # what is not used is left out
STATIC = "-DSHIFTADD_STATIC_RUNTIME"  # TVM's functions are linked in, not looked up
PLAIN = "module.cpp"  # opens model.so; a single library has its own


def soname() -> str:
    """Return the name that programs know the library by; it ends with the number of the ABI."""
    header = (HEADERS / "shiftadd" / "shiftadd.h").read_text("utf-8")
    found = re.search(r"^#define SHIFTADD_ABI_VERSION (\d+)$", header, re.MULTILINE)
    assert found is not None, "shiftadd.h states no ABI version"
    return f"{native_build.LIBRARY}.{found[1]}"


def write_library(output: Path, machine: str) -> None:
    """Write libshiftadd for `machine`; it opens TVM's libraries from the folder that it lies in.

    This machine's own compiler builds it small, for the C++ library that TVM's need anyway; zig builds
    it for another machine. Raises `OutputError` where it cannot be built.
    """
    try:
        if machine == cpu.machine():
            native_build.build(output, options=("-Os", *SECTIONS, "-Wl,--gc-sections"))
        else:
            native_build.build(output, machine)
    except native_build.BuildError as error:
        raise OutputError(str(error)) from error


def linked_objects(machine: str) -> list[Path]:
    """Return libshiftadd as object files that TVM's runtime and a model are to be linked with."""
    folder = native_build.SOURCES
    sources = [path for path in native_build.units() if path.name != PLAIN]
    names = [path.relative_to(folder).as_posix() for path in sources]
    texts = {name[:-4].replace("/", "-"): f'#include "{name}"\n' for name in [*names, "linked.cpp"]}
    folders = [folder, LINKED, *native_build.include_folders()]
    where = [*(f"-I{path}" for path in folders), *(f"-ffile-prefix-map={f}/=" for f in folders)]
    inputs = [*native_build.sources(), *object_cache.files(LINKED)]
    flags = [*native_build.COMPILE, *SECTIONS, STATIC]
    return object_cache.compiled("libshiftadd", machine, texts, flags, where, inputs)
