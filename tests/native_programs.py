"""C++ programs of the tests, built with the library's own sources under a sanitizer."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shiftadd_tvm.runtime import native_build

FOLDER = Path(__file__).parent / "native"
COMPILE = ("-std=c++17", "-O1", "-gline-tables-only", "-Wall", "-Wextra")
# of the library: what reads files, and nothing of TVM
LOADER = (
    *("archive", "artifact", "failure", "files", "gpu", "json", "manifest"),
    *("processor", "safetensors", "sha256", "utf8"),
)
TEXT = tuple(path.stem for path in native_build.units() if path.parent.name == "text")
# an allocation of a gigabyte for a file of some kilobytes is a failure too
LIMITS = {
    "ASAN_OPTIONS": "max_allocation_size_mb=1024:detect_leaks=1:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1",
    "LSAN_OPTIONS": f"suppressions={FOLDER / 'leaks.txt'}:print_suppressions=0",
}


def build(
    folder: Path, programs: dict[str, tuple[str, ...] | None], sanitizers: str
) -> dict[str, Path]:
    """Return the paths of programs, each of native/<name>.cpp and of so many units of the library (None:
    of all but those for text); clang compiles."""
    compiler = shutil.which("clang++")
    assert compiler, "clang++ is needed (.ci/run installs it)"
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *COMPILE]
    flags += [f"-I{path}" for path in native_build.include_folders()]
    flags += [f"-I{native_build.SOURCES / 'src'}"]
    library = {path.stem: path for path in native_build.units()}
    engine = tuple(name for name in library if name not in TEXT)
    wanted = {name: engine if units is None else units for name, units in programs.items()}
    sources = {
        name: library[name] for units in wanted.values() for name in (*units, "tensor_types")
    }
    sources |= {name: FOLDER / f"{name}.cpp" for name in wanted}

    def compile_one(name: str) -> None:
        # a program for libFuzzer needs its main, a library file must not have it
        _run([compiler, *flags, "-c", str(sources[name]), "-o", str(folder / f"{name}.o")])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources))
    for name, units in wanted.items():
        objects = [str(folder / f"{unit}.o") for unit in {name, *units, "tensor_types"}]
        _run([compiler, *flags, *objects, "-o", str(folder / name), "-ldl", "-lpthread"])
    return {name: folder / name for name in wanted}


def run(program: Path, *arguments: object) -> str:
    """Return what a program prints; fails with what it complains about."""
    child = subprocess.run(
        [str(program), *map(str, arguments)],
        env={**os.environ, **LIMITS},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert child.returncode == 0, child.stderr[-6000:] + child.stdout[-500:]
    return child.stdout


def _run(command: list[str]) -> None:
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-6000:]
