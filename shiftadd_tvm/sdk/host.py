"""libshiftadd for a machine: as a library, or to be linked into a single one with all the rest."""

from pathlib import Path

from shiftadd_tvm import object_cache
from shiftadd_tvm.errors import OutputError
from shiftadd_tvm.runtime import native_build
from shiftadd_tvm.toolchain import ZIG, Linker, find_compiler

LINKED = Path(__file__).parent / "linked"
HEADERS = native_build.SOURCES / "include"
FLAGS = (*native_build.COMPILE, "-Os", "-ffunction-sections", "-fdata-sections")
STATIC = "-DSHIFTADD_STATIC_RUNTIME"  # TVM's functions are linked in, not looked up
PLAIN = "module.cpp"  # opens model.so; a single library has its own
# nodelete: threads may be inside when a program closes the library
LINK = ("-Wl,-z,nodelete", "-Wl,--no-undefined", "-ldl", "-lpthread")


def write_library(folder: Path, machine: str) -> None:
    """Write it for `machine` into `folder`, from which it opens TVM's libraries.

    Raises `UnsupportedError` without a compiler, `OutputError` where it fails.
    """
    command = find_compiler(machine)
    # zig leaves out nearly everything when it is asked to leave out what is not used
    unused = () if ZIG in command else ("-Wl,--gc-sections",)
    exported = f"-Wl,--version-script={native_build.SOURCES / 'shiftadd.map'}"
    made = _objects("libshiftadd", machine, native_build.units(), ())
    words = [f"-Wl,-soname,{native_build.SONAME}", exported, *unused, *made, *LINK]
    Linker(command).link(folder / native_build.SONAME, words)


def linked_objects(machine: str) -> list[Path]:
    """Return it as object files that TVM's runtime and a model are to be linked with."""
    units = [unit for unit in native_build.units() if unit.name != PLAIN]
    return _objects("linked", machine, [*units, LINKED / "linked.cpp"], (STATIC,))


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
