"""TVM's runtime libraries for any machine: those installed here, or those of another machine's wheels.

Wheels for another machine are fetched once by pip, which checks them against the sha256 that
`runtime_wheels.json` pins; three libraries of each machine stay in the user's cache, and are checked
against their own sha256 whenever they are handed out. The wheels themselves (98 MB) are not kept.
"""

import importlib.metadata
import importlib.resources
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shiftadd_tvm import cpu
from shiftadd_tvm.errors import OutputError, UnsupportedError
from shiftadd_tvm.files import sha256, user_cache

RUNTIME, EXTRA, FFI = "libtvm_runtime.so", "libtvm_runtime_extra.so", "libtvm_ffi.so"
CUDA = "libtvm_runtime_cuda.so"
PINS = "runtime_wheels.json"
# One wheel for everybody: ffi's libraries do not depend on the Python that a wheel is for.
WHEEL_OF = ("--implementation", "cp", "--python-version", "3.11", "--abi", "cp311")
PLATFORMS = ("manylinux_2_28", "manylinux_2_24")

Pins = Mapping[str, Mapping[str, Any]]  # of one machine: by distribution


def find(machine: str) -> dict[str, Path]:
    """Return the paths of `RUNTIME`, `EXTRA` and `FFI` for `machine` (as the kernel names it), by name.

    Fetches the wheels of another machine where the cache lacks a library or holds a changed one.
    Raises `UnsupportedError` where there are none, or pip cannot get them, `OutputError` where the
    cache cannot be written.
    """
    if machine == cpu.machine():
        where = {RUNTIME: "tvm", EXTRA: "tvm", FFI: "tvm_ffi"}
        return {name: _installed(package, name) for name, package in where.items()}
    pins = _pins(machine)
    folder = cache_folder(machine, pins)
    if not _whole(folder, pins):
        _fetch(machine, pins, folder)
    return {Path(name).name: folder / Path(name).name for name in _files(pins)}


def cache_folder(machine: str, pins: Pins) -> Path:
    """Return where the libraries of `machine` lie: one folder for each pair of versions."""
    versions = "-".join(str(pin["version"]) for pin in pins.values())
    return user_cache() / "runtime_libraries" / f"{machine}-{versions}"


def find_cuda() -> Path:
    """Return TVM's runtime for CUDA, of this machine; raise `UnsupportedError` without one."""
    return _installed("tvm", CUDA)


def _installed(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for f in folders if (path := Path(f) / "lib" / name).is_file()]
    if not found:
        raise UnsupportedError(
            f"TVM's {name} was not found in the installed package {package}; install "
            f"apache-{package.replace('_', '-')} (shiftadd-tvm doctor)."
        )
    return found[0]


def _pins(machine: str) -> Pins:
    """Return what is pinned for `machine`; refuse what does not fit the TVM that compiles here."""
    pinned = json.loads(importlib.resources.files("shiftadd_tvm").joinpath(PINS).read_bytes())
    if machine not in pinned:
        raise UnsupportedError(
            f"No runtime libraries are known for {machine}: expected one of {', '.join(pinned)}."
        )
    for name, pin in pinned[machine].items():
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # nothing is compiled here that could differ
        if here != pin["version"]:
            raise UnsupportedError(
                f"{name} {here} is installed, but runtime libraries for {machine} are pinned to "
                f"{pin['version']}, and both must match; pip install '{name}=={pin['version']}'."
            )
    found: Pins = pinned[machine]
    return found


def _files(pins: Pins) -> dict[str, str]:
    """Return the sha256 of each library by its name in its wheel."""
    return {name: digest for pin in pins.values() for name, digest in pin["files"].items()}


def _whole(folder: Path, pins: Pins) -> bool:
    """Tell whether every library is there, unchanged."""
    found = {folder / Path(name).name: digest for name, digest in _files(pins).items()}
    return all(path.is_file() and sha256(path) == digest for path, digest in found.items())


def _fetch(machine: str, pins: Pins, folder: Path) -> None:
    """Download the wheels and keep their libraries."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            place = Path(scratch)
            _download(machine, pins, place)
            for wheel in sorted(place.glob("*.whl")):
                _unpack(wheel, set(_files(pins)), place)
            if not _whole(place, pins):
                raise UnsupportedError(
                    f"The wheels for {machine} hold other libraries than {PINS} pins; please "
                    "report it."
                )
            for name in _files(pins):
                (place / Path(name).name).replace(folder / Path(name).name)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from error


def _unpack(wheel: Path, names: set[str], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in names & set(archive.namelist()):
            (folder / Path(name).name).write_bytes(archive.read(name))


def _download(machine: str, pins: Pins, folder: Path) -> None:
    """Put the pinned wheels of `machine` into `folder`; pip refuses any other bytes."""
    wanted = folder / "wheels.txt"
    lines = [f"{n}=={pin['version']} --hash=sha256:{pin['sha256']}\n" for n, pin in pins.items()]
    wanted.write_text("".join(lines), encoding="utf-8")
    platforms = [word for tag in PLATFORMS for word in ("--platform", f"{tag}_{machine}")]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--require-hashes", *WHEEL_OF, *platforms),
        *("--requirement", str(wanted), "--dest", str(folder)),
    ]
    child = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if child.returncode:
        lines = [line for line in child.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or child.stderr.strip().splitlines() or ["no output"])[-1]
        names = " and ".join(f"{name} {pin['version']}" for name, pin in pins.items())
        raise UnsupportedError(
            f"The wheels of {names} for {machine}, which hold its runtime libraries, cannot be "
            f"fetched ({reason.removeprefix('ERROR: ')}); make pip's index reachable, or copy "
            f"{cache_folder(machine, pins)} from a machine that has it."
        )
