"""What a program in C or C++ needs to embed a model: libraries, headers, and how build tools find them.

    include/shiftadd/           shiftadd.h, shiftadd.hpp, shiftadd_text.h, shiftadd_text.hpp
    lib/libshiftadd.so.N        and the two runtime libraries of TVM, which it opens beside itself (for a
                                GPU also those of `gpu.py`); or, of a single library, libshiftadd.a,
                                with model.so above
    bin/shiftadd-rpc-server     for boards that run no Python: `tune --rpc`, `verify --rpc` (bundles only)
    lib/cmake/shiftadd/         find_package(shiftadd CONFIG)
    lib/pkgconfig/shiftadd.pc
    licenses/                   ours and TVM's

Nothing in it states where it lies: the folder may be moved.
"""

import hashlib
import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from shiftadd_tvm import __version__, object_cache, rpc_server, runtime_libraries
from shiftadd_tvm.errors import OutputError
from shiftadd_tvm.files import sha256
from shiftadd_tvm.runtime import native_build
from shiftadd_tvm.sdk import host
from shiftadd_tvm.toolchain import find_compiler

TEMPLATES = Path(__file__).parent / "templates"
PROCESSORS = {"x86_64": "x86_64|AMD64|amd64", "aarch64": "aarch64|arm64"}  # as CMake names them
PACKAGES = ("shiftadd-tvm", "apache-tvm", "apache-tvm-ffi")
# not those of kernels that TVM's wheel has in other libraries
LICENSE = re.compile(r"(LICENSE|NOTICE)(\.(builtin_fp16|libflash_attn)\.txt)?")
ARCHIVE = "libshiftadd.a"
TARGET = """\
if(NOT TARGET @TARGET@)
  add_library(@TARGET@ @KIND@ IMPORTED)
  set_target_properties(@TARGET@ PROPERTIES
    IMPORTED_LOCATION "${shiftadd_PREFIX}/@LIBRARY@"
    INTERFACE_INCLUDE_DIRECTORIES "${shiftadd_PREFIX}/include"@MORE@)
endif()
"""
# text is a part of the same library; who asks for it by name says why it is used
TEXT = """\
if(NOT TARGET shiftadd::text)
  add_library(shiftadd::text INTERFACE IMPORTED)
  set_target_properties(shiftadd::text PROPERTIES INTERFACE_LINK_LIBRARIES shiftadd::shiftadd)
endif()
"""
STATIC_NEEDS = '\n    INTERFACE_LINK_LIBRARIES "stdc++;m;dl;pthread"'


def write(folder: Path, machine: str) -> None:
    """Write the libraries of `machine`, headers and the rest into `folder`.

    Raises `UnsupportedError` without a compiler or TVM's libraries, `OutputError` where one fails.
    """
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    host.write_library(folder / "lib", machine)
    found = runtime_libraries.find(machine)
    for name in (runtime_libraries.RUNTIME, runtime_libraries.FFI):
        shutil.copyfile(found[name], folder / "lib" / name)
        (folder / "lib" / name).chmod(0o755)
    (folder / "bin").mkdir()
    server = folder / "bin" / rpc_server.PROGRAM
    rpc_server.link(server, folder / "lib", find_compiler(machine))
    name = native_build.SONAME
    targets = [_target("shiftadd::shiftadd", "SHARED", f"lib/{name}"), TEXT]
    _write_common(folder, machine, targets, "lib", f"-L${{libdir}} -l:{name}")


def write_single(folder: Path, machine: str, library: str) -> None:
    """Write what goes with the single library `library` in `folder`, and with its archive, if any."""
    targets = [_target("shiftadd::shiftadd", "SHARED", library), TEXT]
    if (folder / "lib" / ARCHIVE).is_file():
        targets += [_target("shiftadd::static", "STATIC", f"lib/{ARCHIVE}", STATIC_NEEDS)]
    _write_common(folder, machine, targets, ".", f"-L${{libdir}} -l:{library}")


def _target(name: str, kind: str, library: str, more: str = "") -> str:
    return _filled(TARGET, TARGET=name, KIND=kind, LIBRARY=library, MORE=more)


def _write_common(
    folder: Path, machine: str, targets: Sequence[str], libdir: str, libs: str
) -> None:
    shutil.copytree(host.HEADERS, folder / "include", dirs_exist_ok=True)
    names = re.findall(r"if\(NOT TARGET shiftadd::(\w+)\)", "".join(targets))
    values = {
        "TARGETS": "\n".join(targets),
        "COMPONENTS": "|".join(names),
        "MACHINE": machine,
        "PROCESSOR": PROCESSORS[machine],
        "VERSION": __version__,
        "MINOR": ".".join(__version__.split(".")[:2]),
        "LIBDIR": libdir,
        "LIBS": libs,
    }
    places = {
        "lib/cmake/shiftadd": ("shiftaddConfig.cmake", "shiftaddConfigVersion.cmake"),
        "lib/pkgconfig": ("shiftadd.pc",),
    }
    for place, templates in places.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name in templates:
            text = (TEMPLATES / name).read_text("utf-8")
            (folder / place / name).write_text(_filled(text, **values), "utf-8")
    for package, path in _licenses():
        own = folder / "licenses" / package
        own.mkdir(parents=True, exist_ok=True)
        again = (own / path.name).is_file() and (own / path.name).read_bytes() != path.read_bytes()
        shutil.copyfile(path, own / (f"{path.name}.{path.parent.name}" if again else path.name))


def _filled(template: str, **values: str) -> str:
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template


def _licenses() -> Iterator[tuple[str, Path]]:
    """Return the licence files of everything that is handed on, and whose they are."""
    for package in PACKAGES:
        for entry in importlib.metadata.files(package) or []:
            if LICENSE.fullmatch(entry.name):
                yield package, Path(str(entry.locate()))


def records(folder: Path) -> dict[str, dict[str, object]]:
    """Return bytes and sha256 of every file below `folder`'s own subfolders, by its relative name."""
    paths = [path for path in object_cache.files(folder) if path.parent != folder]
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in paths
    }


def prefix(machine: str) -> Path:
    """Return a folder with everything but a model, made in the cache the first time."""
    target = object_cache.cache() / f"sdk-{machine}-{_digest()}"
    if not target.is_dir():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="sdk.", dir=target.parent) as place:
                made = Path(place) / "prefix"
                write(made, machine)
                if not target.is_dir():  # another process may have been faster
                    made.rename(target)
        except OSError as error:
            problem = error.strerror or str(error)
            raise OutputError(f"{target.parent} cannot be written: {problem}.") from error
    return target


def _digest() -> str:
    """Return a hash of everything that decides what a prefix holds."""
    own = Path(__file__).parent
    parts = [importlib.metadata.version(package) for package in PACKAGES[1:]] + [__version__]
    inputs = [*native_build.sources(), *rpc_server.SOURCES.glob("*.cc")]
    inputs += [Path(native_build.__file__), Path(rpc_server.__file__)]
    inputs += [*own.glob("*.py"), *object_cache.files(TEMPLATES)]
    parts += [sha256(path) for path in sorted(inputs)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:20]
