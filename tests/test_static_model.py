"""Tuning for a processor that is not here: llvm-mca times its loop, nothing runs, and logs say so."""

import json
from pathlib import Path

import pytest
from command import call_here, fails
from test_toolchain import program
from tvm.ir import IRModule

from shiftadd_tvm import backend, diagnosis, pipeline, timing_model
from shiftadd_tvm.disassembly import Instruction
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.schedules.llvm import lut
from shiftadd_tvm.timing_model import ModelError
from shiftadd_tvm.tuning import log, static_model, tasks

N1 = backend.load("arm-neoverse-n1")
SHIPPED = Path(__file__).parent.parent / "tuning_logs"
MODELLED = [path.parent.name for path in sorted(SHIPPED.glob("arm-*/meta.json"))]


def loop(*lines: str) -> list[Instruction]:
    split = [line.partition(" ") for line in lines]
    return [
        Instruction(4 * place, 4, mnemonic, operands=operands)
        for place, (mnemonic, _, operands) in enumerate(split)
    ]


def test_a_chain_takes_longer_than_its_links() -> None:
    model = timing_model.find()
    cycles = lambda *lines: model.cycles(loop(*lines), N1.model, N1.machine)
    chain = cycles(*["add v0.8h, v0.8h, v1.8h"] * 4)
    free = cycles(*[f"add v{i}.8h, v{i}.8h, v9.8h" for i in range(4)])
    assert 4 * 1.5 < chain and free < chain / 2


def test_what_the_model_does_not_know() -> None:
    with pytest.raises(ModelError, match="error"):
        timing_model.find().cycles(loop("frobnicate v0.8h"), N1.model, N1.machine)


def test_the_newest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"found none; install.*apt-get install llvm-19"):
        timing_model.find()
    program(tmp_path, "llvm-mca", "echo LLVM version 14.0.6")
    with pytest.raises(UnsupportedError, match=r"LLVM 17 or newer.*of LLVM 14\.0\.6"):
        timing_model.find()
    check = next(c for c in diagnosis.examine() if c.name == timing_model.NAME)
    assert not check.ok and check.optional and "llvm-19" in check.remedy
    for version in ("17.0.1", "21.1.0"):
        path = program(tmp_path, f"llvm-mca-{version[:2]}", f"echo LLVM version {version}")
        found = timing_model.find()
        assert (found.program, found.name) == (str(path), f"llvm-mca {version}")


def test_tuning_without_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("tune", "--target", N1.name, "--synthetic", "tiny", "--trials", "2")
    made = call_here(*words, "--minutes", "0.001", "-o", tmp_path / "log", "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert report["measured"] == "static-model" and report["lookup_rows"] is None
    (task,) = report["tasks"]
    assert 0 < task["after_us"] <= task["before_us"] and task["trials"] == 2
    meta = json.loads((tmp_path / "log" / "meta.json").read_text())
    (run,) = meta["runs"]
    assert run["measured"] == "static-model" and run["device"]["cpu"] == N1.model
    assert run["device"]["model"] == timing_model.find().name and "--synthetic tiny" in run["command"]
    found = {task.name: task for task in tasks.shipped(N1, ("tiny",))}[task["name"]]
    module = IRModule({"main": found.function})
    _, counts = pipeline.apply_schedules(module, N1, log.open_logs(N1.name, tmp_path / "log"))
    assert counts["tuned"] == 1


def test_what_only_memory_decides_is_not_searched() -> None:
    searched = static_model.Site(N1).space(lut).KNOBS
    free = {name for name, knob in searched.items() if len(knob.candidates) > 1}
    assert free == {"shared", "unroll"} and list(searched) == list(lut.KNOBS)
    assert all(knob.default == lut.KNOBS[name].default for name, knob in searched.items())


def test_which_logs_are_shipped() -> None:
    assert set(MODELLED) == {name for name in backend.presets() if backend.load(name).model}


@pytest.mark.parametrize("preset", MODELLED)
def test_shipped_logs_say_that_nothing_ran(preset: str) -> None:
    shipped = log.TuningLog(SHIPPED / preset, preset)
    runs = shipped.meta["runs"]
    assert runs and {run["measured"] for run in runs} == {"static-model"}
    assert {run["device"]["cpu"] for run in runs} == {backend.load(preset).model}
    named = {task["name"] for run in runs for task in run["tasks"]}
    # of this model at least, in 2 to 4 bits
    wanted = {task.name for task in tasks.shipped(backend.load(preset), ("smollm2-135m",))}
    assert wanted <= named and "lookup_rows" not in shipped.meta
    assert wanted <= {entry["task"] for found in shipped.records.values() for entry in found}


@pytest.mark.parametrize("preset", MODELLED)
def test_compiling_finds_the_shipped_records(preset: str) -> None:
    target = backend.load(preset)
    task = tasks.shipped(target, ("smollm2-135m",))[-1]
    module = IRModule({"main": task.function})
    _, counts = pipeline.apply_schedules(module, target, log.open_logs(preset))
    assert counts["tuned"] == 1


def test_what_no_model_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(call_here("tune", "--target", "arm", cwd=tmp_path), 3, "cannot be measured", "aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    fails(call_here("tune", "--target", N1.name, cwd=tmp_path), 3, "llvm-mca", "install llvm-19")
    fails(call_here("tune", "x", "--synthetic", "y", cwd=tmp_path), 4)
    fails(call_here("tune", "--synthetic", "llama-2-8b", cwd=tmp_path), 2, "nearest")
