"""Build libshiftadd from the sources in cpp/: `python -m shiftadd_tvm.runtime.native_build`.

This machine's own C++ compiler makes the library of an installation from sources; zig, from its Python
package, makes those that travel (wheels, bundles, other machines): they need glibc 2.28 and no C++
library. Imports nothing of the package, since setup.py runs it before there is one.
"""

import argparse
import concurrent.futures
import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "cpp"
LIBRARY = "libshiftadd.so"
SONAME = "libshiftadd.so.0"  # the number is SHIFTADD_ABI_VERSION
IN_TREE = Path(__file__).parent / "lib" / LIBRARY  # where the package looks for it
MACHINES = ("x86_64", "aarch64")
GLIBC = "2.28"  # the oldest that TVM's own wheels run with
PARTS = ("src", "text")  # folders of cpp/
SUFFIXES = (".cpp", ".h", ".hpp", ".inc", ".map")
NATIVE = ("c++", "g++", "clang++")
COMPILE = (
    *("-std=c++17", "-O2", "-DNDEBUG", "-fPIC", "-Wall", "-Wextra"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
)
# nodelete: threads may be inside when a program closes the library
LINK = ("-shared", "-s", f"-Wl,-soname,{SONAME}", "-Wl,-z,nodelete", "-Wl,--no-undefined")


class BuildError(Exception):
    """The library cannot be built; one sentence says why, and what to do."""


def compiler(machine: str | None = None) -> list[str]:
    """Return the command of a C++ compiler: this machine's, or zig's for a named machine."""
    if platform.system() != "Linux" or platform.machine() not in MACHINES:
        raise BuildError(
            f"libshiftadd runs on Linux on {' and '.join(MACHINES)}, this is {platform.system()} on "
            f"{platform.machine()}; quantize and compile there, or use a Linux machine."
        )
    if machine is not None:
        if importlib.util.find_spec("ziglang") is None:
            raise BuildError(
                f"zig is needed to build libshiftadd for {machine}; pip install ziglang."
            )
        return [*zig(), "-target", f"{machine}-linux-gnu.{GLIBC}"]
    found = next((path for name in NATIVE if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError(
            f"No C++ compiler was found to build libshiftadd: expected {', '.join(NATIVE)} on the PATH; "
            "install one (Debian: apt-get install g++)."
        )
    return [found]


def zig() -> list[str]:
    """Return the command of zig's C++ compiler."""
    return [sys.executable, "-m", "ziglang", "c++"]


def include_folders() -> list[Path]:
    """Return our header's folder, and those of TVM's C ABI, from the package apache-tvm-ffi."""
    spec = importlib.util.find_spec("tvm_ffi")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("The headers of TVM's C ABI were not found; pip install apache-tvm-ffi.")
    folder = Path(spec.submodule_search_locations[0])
    return [SOURCES / "include", folder / "include", folder / "3rdparty" / "dlpack" / "include"]


def units() -> list[Path]:
    """Return the sources that the compiler makes objects of."""
    return sorted(path for folder in PARTS for path in (SOURCES / folder).glob("*.cpp"))


def sources() -> list[Path]:
    """Return the files that the library is made of, apart from TVM's headers."""
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in SUFFIXES)


def build(output: Path, machine: str | None = None, options: tuple[str, ...] = ()) -> Path:
    """Write the library for this machine, or for a named one; return `output`.

    `options` are more of the compiler's. Raises `BuildError`.
    """
    command = compiler(machine)
    flags = [*COMPILE, *options, *(f"-I{folder}" for folder in include_folders())]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shiftadd-build-") as folder:
        objects = [Path(folder) / f"{unit.stem}.o" for unit in units()]
        compile_one = lambda unit, made: _run([*command, *flags, "-c", str(unit), "-o", str(made)])
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(compile_one, units(), objects))
        exported = f"-Wl,--version-script={SOURCES / 'shiftadd.map'}"
        linked = Path(folder) / LIBRARY
        files = [str(made) for made in objects]
        _run([*command, *options, *LINK, exported, "-o", str(linked), *files, "-ldl", "-lpthread"])
        partial = output.with_name(output.name + ".partial")
        shutil.copyfile(linked, partial)
        partial.chmod(0o755)
        partial.replace(output)  # a process that has the old one mapped keeps it
    return output


def _run(command: list[str]) -> None:
    child = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if child.returncode:
        raise BuildError(f"libshiftadd cannot be built: {' '.join(command)} says\n{child.stdout}")


def is_current(output: Path) -> bool:
    """Tell whether `output` is newer than everything that it is made of."""
    made = output.stat().st_mtime if output.is_file() else 0.0
    return all(path.stat().st_mtime <= made for path in [*sources(), Path(__file__)])


def main(arguments: list[str]) -> int:
    """Build the library into the package (or elsewhere) unless it is newer than its sources."""
    parser = argparse.ArgumentParser(description="Build libshiftadd, unless it is current.")
    parser.add_argument("-o", dest="output", type=Path, default=IN_TREE)
    parser.add_argument("--machine", choices=MACHINES, help="build for this machine, by zig")
    parser.add_argument("--option", action="append", default=[], help="one more of the compiler's")
    chosen = parser.parse_args(arguments)
    try:
        if not is_current(chosen.output):
            build(chosen.output, chosen.machine, tuple(chosen.option))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(chosen.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
