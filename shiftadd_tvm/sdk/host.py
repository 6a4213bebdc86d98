"""libshiftadd and libshiftadd_text for a machine: as libraries, or to be linked into a single one."""

import re
from pathlib import Path

from shiftadd_tvm import object_cache
from shiftadd_tvm.errors import OutputError
from shiftadd_tvm.runtime import native_build
from shiftadd_tvm.toolchain import ZIG, Linker, find_compiler

LINKED = Path(__file__).parent / "linked"
HEADERS = native_build.SOURCES / "include"
# components, as CMake calls them: the library and the folder of its sources
PARTS = {"shiftadd": ("libshiftadd", "src"), "text": ("libshiftadd_text", "text")}
FLAGS = (*native_build.COMPILE, "-Os", "-ffunction-sections", "-fdata-sections")
STATIC = "-DSHIFTADD_STATIC_RUNTIME"  # TVM's functions are linked in, not looked up
PLAIN = "module.cpp"  # opens model.so; a single library has its own
# nodelete: threads may be inside when a program closes the library
LINK = ("-Wl,-z,nodelete", "-Wl,--no-undefined", "-ldl", "-lpthread")


def libraries() -> dict[str, str]:
    """Return the file's name of each component that there are sources of."""
    header = (HEADERS / "shiftadd" / "shiftadd.h").read_text("utf-8")
    found = re.search(r"^#define SHIFTADD_ABI_VERSION (\d+)$", header, re.MULTILINE)
    assert found is not None, "shiftadd.h states no ABI version"
    return {part: f"{PARTS[part][0]}.so.{found[1]}" for part in PARTS if _units(part)}


def write_libraries(folder: Path, machine: str) -> None:
    """Write them for `machine`; libshiftadd opens TVM's libraries from the folder that it lies in.

    Raises `UnsupportedError` without a compiler, `OutputError` where one fails.
    """
    command = find_compiler(machine)
    # zig leaves out nearly everything when it is asked to leave out what is not used
    unused = () if ZIG in command else ("-Wl,--gc-sections",)
    exported = f"-Wl,--version-script={native_build.SOURCES / 'shiftadd.map'}"
    for part, name in libraries().items():
        made = _objects(PARTS[part][0], machine, _units(part), ())
        words = [f"-Wl,-soname,{name}", exported, *unused, *made, *LINK]
        Linker(command).link(folder / name, words)


def linked_objects(machine: str) -> list[Path]:
    """Return both as object files that TVM's runtime and a model are to be linked with."""
    units = [unit for part in PARTS for unit in _units(part) if unit.name != PLAIN]
    return _objects("linked", machine, [*units, LINKED / "linked.cpp"], (STATIC,))


def _units(part: str) -> list[Path]:
    return sorted((native_build.SOURCES / PARTS[part][1]).glob("*.cpp"))


def _objects(name: str, machine: str, units: list[Path], more: tuple[str, ...]) -> list[Path]:
    folder = native_build.SOURCES
    texts = {f"{u.parent.name}-{u.stem}": f'#include "{u.parent.name}/{u.name}"\n' for u in units}
    try:
        folders = [folder, LINKED.parent, LINKED, *native_build.include_folders()]
    except native_build.BuildError as error:
        raise OutputError(str(error)) from error
    where = [*(f"-I{path}" for path in folders), *(f"-ffile-prefix-map={f}/=" for f in folders)]
    inputs = [*object_cache.files(folder), *object_cache.files(LINKED)]
    return object_cache.compiled(name, machine, texts, [*FLAGS, *more], where, inputs)
