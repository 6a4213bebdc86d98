"""What links libraries: for this machine and for another one; what is said where nothing does."""

import sys
from pathlib import Path

import pytest
from conftest import Tiny

from shiftadd_tvm import backend, cpu, diagnosis, presentation, toolchain
from shiftadd_tvm.artifact import LIBRARY, Artifact
from shiftadd_tvm.compile_settings import CompileSettings
from shiftadd_tvm.compiler import CompileReport, compile_model
from shiftadd_tvm.errors import OutputError, UnsupportedError
from shiftadd_tvm.kernel_inspection import count_library
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.toolchain import Linker, find_linker
from shiftadd_tvm.workflow import CompilePlan

OTHER = next(machine for machine in ("aarch64", "x86_64") if machine != cpu.machine())
CROSS = f"{OTHER}-linux-gnu-g++"


def program(folder: Path, name: str, script: str = "exit 0") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def without_zig(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)


def test_this_machine_is_linked_by_its_own_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"expected g\+\+, c\+\+ or clang\+\+ on the PATH"):
        find_linker(cpu.machine())
    for name in ("clang++", "c++", "g++"):  # each is preferred to those before
        path = program(tmp_path, name)
        assert find_linker(cpu.machine()).command == (str(path),)


def test_another_machine_is_linked_by_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: name == "ziglang")
    command = find_linker(OTHER).command
    assert command[:3] == (sys.executable, "-m", "ziglang")
    assert f"{OTHER}-linux-gnu.2.28" in command
    path = program(tmp_path, CROSS)
    assert find_linker(OTHER).command == (str(path),)


def test_both_remedies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    without_zig(monkeypatch)
    with pytest.raises(UnsupportedError) as caught:
        find_linker(OTHER)
    package = f"g++-{OTHER.replace('_', '-')}-linux-gnu"
    for word in (OTHER, CROSS, "'shiftadd-tvm[arm]'", f"apt-get install {package}"):
        assert word in str(caught.value)
    checks = {check.name: check for check in diagnosis.examine()}
    found = checks[f"linker for {OTHER}"]
    assert not found.ok and found.optional and "shiftadd-tvm[arm]" in found.remedy


def test_nothing_is_written_without_a_linker(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    without_zig(monkeypatch)
    target = next(p for p in backend.presets().values() if p.machine == OTHER)
    with pytest.raises(UnsupportedError, match="No linker for"):
        compile_model(
            open_packed(tiny.packed), tmp_path / "app", target, CompileSettings(), version="test"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runs", [True, False])
def test_what_to_do_next(runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To run what cannot run here is no advice."""
    target = next(p for p in backend.presets().values() if p.machine == OTHER)
    monkeypatch.setattr(backend.Backend, "runs_here", lambda self: runs)
    place = tmp_path / "my app"
    plan = CompilePlan(tmp_path / "packed", place, target, None, False, CompileSettings())
    report = CompileReport(target.name, {"scheduled": 1}, 1, 1, None, 1.0)
    hint = presentation.compile_summary(plan, report).splitlines()[-1]
    if runs:
        assert hint.startswith(f"next: shiftadd-tvm run '{place}'")
    else:
        assert hint.startswith(f"next: copy '{place}' to a machine that can run {target.name}")
        assert OTHER in hint and hint.endswith("shiftadd-tvm verify 'my app'")


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo first; echo disk full >&2; exit 1", "disk full"), ("exit 3", "exit status 3")],
)
def test_a_linker_that_fails(script: str, reason: str, tmp_path: Path) -> None:
    linker = Linker((str(program(tmp_path, "ld", script)),))
    with pytest.raises(OutputError, match=f"{LIBRARY} cannot be linked by .*ld: {reason}"):
        linker.link(tmp_path / LIBRARY, [])
    with pytest.raises(OutputError, match="absent: No such file"):
        Linker((str(tmp_path / "absent"),)).link(tmp_path / LIBRARY, [])


def test_an_artifact_for_another_machine(tiny: Tiny, tmp_path: Path) -> None:
    """Not verified, since it cannot run here; the same bytes again; look-ups that do not multiply."""
    pytest.importorskip("ziglang")
    target = next(p for p in backend.presets().values() if p.machine == OTHER)
    model, one = open_packed(tiny.packed), CompileSettings(sequences=1)
    for name in ("app", "again"):
        report = compile_model(model, tmp_path / name, target, one, version="test")
        assert report.verify is None and report.kernels["scheduled"] > 0
    manifest = Artifact(tmp_path / "app").manifest
    assert manifest["verified"] is False and manifest["target"]["machine"] == OTHER
    for path in (tmp_path / "app").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    counts = count_library(tmp_path / "app" / LIBRARY)
    found = [count for name, count in counts.items() if name.startswith("lut_query")]
    assert found and all(count.multiplication_free for count in found)
