"""Compile C++ for a machine, once: object files that the user's cache keeps by what made them."""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shiftadd_tvm import cpu
from shiftadd_tvm.errors import OutputError
from shiftadd_tvm.files import user_cache
from shiftadd_tvm.toolchain import find_compiler

FOLDER = "native"  # in the cache


def cache() -> Path:
    """Return where compiled code is kept."""
    return user_cache().absolute() / FOLDER


def compiled(
    name: str,
    machine: str,
    units: Mapping[str, str],
    flags: Sequence[str],
    where: Sequence[str],
    inputs: Iterable[Path],
) -> list[Path]:
    """Return one object file for each of `units` (name: text in C++), compiled if the cache has none.

    `flags` and the contents of `inputs`, the files that the units include, decide what the objects are;
    `where` are the flags that only say where things lie. `name` stands in errors and in the cache.
    Raises `UnsupportedError` without a compiler, `OutputError` where it fails or the disk is full.
    """
    command = find_compiler(machine)
    contents = [path.read_bytes() for path in sorted(inputs)]
    parts = [*command, _version(command), *flags, *units.keys(), *units.values()]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    folder = cache() / f"{name}-{machine}-{digest.hexdigest()[:20]}"
    if not folder.is_dir():
        _publish(name, [*command, *flags, *where], units, folder)
    return [folder / f"{unit}.o" for unit in units]


def _version(command: Sequence[str]) -> str:
    child = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return child.stdout


def _publish(name: str, command: Sequence[str], units: Mapping[str, str], target: Path) -> None:
    """Compile into a folder beside `target`, then rename it: nobody sees half of it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as place:
            made = Path(place) / "objects"
            made.mkdir()
            _compile(name, command, units, made)
            for path in [*made.glob("*.cc"), *made.glob("*.log")]:
                path.unlink()
            if not target.is_dir():  # another process may have been faster
                made.rename(target)
    except OSError as error:
        raise OutputError(
            f"{target.parent} cannot be written: {error.strerror or error}."
        ) from error


def _compile(name: str, command: Sequence[str], units: Mapping[str, str], folder: Path) -> None:
    """Compile as many units at once as there are processors."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for unit, text in units.items():
            (folder / f"{unit}.cc").write_text(text, encoding="utf-8")
            if len(running) == cpu.cores():
                _finish(name, command, running.pop(0), folder)
            running.append(_start(command, unit, folder))
        while running:
            _finish(name, command, running.pop(0), folder)
    finally:
        for child in running:  # after a failure or an interruption
            child.kill()
            child.wait()


def _start(command: Sequence[str], unit: str, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / f"{unit}.log").open("wb") as log:
        words = [*command, "-c", f"{unit}.cc", "-o", f"{unit}.o"]
        return subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def _finish(
    name: str, command: Sequence[str], child: subprocess.Popen[bytes], folder: Path
) -> None:
    if child.wait() == 0:
        return
    logs = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
    lines = [line for line in logs.splitlines() if "error" in line] or ["it gave no reason"]
    raise OutputError(
        f"{name} cannot be compiled by {command[0]}: {lines[0].strip()}; expected a compiler for C++17 "
        "(g++ 9, clang 10 or newer)."
    )


def files(folder: Path) -> list[Path]:
    """Return every file below `folder`, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
