"""TVM's runtime libraries: this machine's, and those of another one's wheels, fetched once, checked."""

import hashlib
import importlib.metadata
import importlib.resources
import json
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from shiftadd_tvm import cpu, runtime_libraries
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.runtime_libraries import EXTRA, FFI, RUNTIME, find

OTHER = next(machine for machine in ("aarch64", "x86_64") if machine != cpu.machine())
ELF_MACHINES = {"aarch64": "EM_AARCH64", "x86_64": "EM_X86_64"}
CONTENT = {RUNTIME: b"runtime", EXTRA: b"extra", FFI: b"ffi"}
# a stand-in for `python -m pip download ... --dest FOLDER`: it counts its calls
PIP = """#!/bin/sh
echo call >> {root}/calls
for word; do folder=$word; done
cp {root}/wheels/*.whl "$folder"
"""


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_the_libraries_of_a_machine(machine: str) -> None:
    found = find(machine)
    assert list(found) == [RUNTIME, EXTRA, FFI]
    for path in found.values():
        with path.open("rb") as stream:
            assert ELFFile(stream)["e_machine"] == ELF_MACHINES[machine]


def test_the_pins_are_of_the_versions_that_we_test_with() -> None:
    path = importlib.resources.files("shiftadd_tvm") / runtime_libraries.PINS
    pinned = json.loads(path.read_bytes())
    assert set(pinned) == set(ELF_MACHINES)
    for pins in pinned.values():
        for name, pin in pins.items():
            assert pin["version"] == importlib.metadata.version(name)


def test_the_pins_are_in_the_wheel() -> None:
    settings = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["shiftadd_tvm"]
    assert any(Path(runtime_libraries.PINS).match(pattern) for pattern in patterns)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with made-up wheels, which a stand-in of pip hands out."""
    digest = lambda content: hashlib.sha256(content).hexdigest()
    pins: dict[str, dict[str, Any]] = {}
    (tmp_path / "wheels").mkdir()
    for name, package, libraries in (
        ("apache-tvm", "tvm", (RUNTIME, EXTRA)),
        ("apache-tvm-ffi", "tvm_ffi", (FFI,)),
    ):
        files = {f"{package}/lib/{library}": CONTENT[library] for library in libraries}
        with zipfile.ZipFile(tmp_path / "wheels" / f"{package}.whl", "w") as wheel:
            for file, content in files.items():
                wheel.writestr(file, content)
        digests = {file: digest(content) for file, content in files.items()}
        version = importlib.metadata.version(name)
        pins[name] = {"version": version, "sha256": "0" * 64, "files": digests}
    (tmp_path / runtime_libraries.PINS).write_text(json.dumps({OTHER: pins}))
    monkeypatch.setattr(runtime_libraries.importlib.resources, "files", lambda name: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pip(tmp_path, PIP.format(root=tmp_path), monkeypatch)
    return tmp_path


def pip(folder: Path, script: str, patch: pytest.MonkeyPatch) -> None:
    (folder / "python").write_text(script)
    (folder / "python").chmod(0o755)
    patch.setattr(sys, "executable", str(folder / "python"))


def calls(index: Path) -> int:
    return len((index / "calls").read_text().split())


def test_they_are_fetched_once(index: Path) -> None:
    for _ in range(2):
        assert {name: path.read_bytes() for name, path in find(OTHER).items()} == CONTENT
    assert calls(index) == 1
    (folder,) = (index / "cache" / "shiftadd-tvm" / "runtime_libraries").iterdir()
    assert {path.name for path in folder.iterdir()} == set(CONTENT)  # and no wheel


@pytest.mark.parametrize("damage", [b"", b"other"])
def test_a_damaged_one_is_fetched_again(damage: bytes, index: Path) -> None:
    find(OTHER)[EXTRA].write_bytes(damage)
    assert find(OTHER)[EXTRA].read_bytes() == CONTENT[EXTRA] and calls(index) == 2


def test_libraries_that_are_not_those_pinned(index: Path) -> None:
    with zipfile.ZipFile(index / "wheels" / "tvm_ffi.whl", "w") as wheel:
        wheel.writestr(f"tvm_ffi/lib/{FFI}", b"forged")
    with pytest.raises(UnsupportedError, match="other libraries than"):
        find(OTHER)
    assert not list((index / "cache").rglob("*.so"))


def test_pip_says_why_there_are_none(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(index, "#!/bin/sh\necho 'ERROR: no such host' >&2; echo later >&2; exit 1", monkeypatch)
    with pytest.raises(UnsupportedError, match=r"cannot be fetched \(no such host\); .* copy"):
        find(OTHER)
    pip(index, "#!/bin/sh\nexit 1", monkeypatch)
    with pytest.raises(UnsupportedError, match="no output"):
        find(OTHER)


def test_another_version_here(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_libraries.importlib.metadata, "version", lambda name: "0.99")
    with pytest.raises(UnsupportedError, match=r"apache-tvm 0\.99 is installed.*pip install"):
        find(OTHER)


def test_a_machine_that_nobody_knows() -> None:
    with pytest.raises(UnsupportedError, match="riscv64.*aarch64, x86_64"):
        find("riscv64")
