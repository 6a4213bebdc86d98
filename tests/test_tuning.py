"""Tuning: records replay, the model ranks, bad candidates cost one trial, killed searches go on."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tuning_probe as probe
import tvm
import tvm_ffi
from command import call_here, fails, interrupt
from conftest import Tiny
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms

from shiftadd_tvm import backend, compiler, pipeline, shapes, tuner
from shiftadd_tvm.backend import Knob
from shiftadd_tvm.errors import BadFileError, GateError, UnsupportedError, UsageError
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.schedules.llvm import _lookup, lut
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.synthetic import SyntheticModel
from shiftadd_tvm.tuning import crossover, log, search, space, tasks
from shiftadd_tvm.tuning.measure import TrialError

KNOBS = {"shared": 1, "task": 2, "unroll": 2, "prefetch": 1024, "far": 4096}
PRESET = probe.BACKEND.name


def probed(function: str, folder: Path) -> Any:
    """Return what a function of `tuning_probe` says in a fresh process."""
    command = [sys.executable, probe.__file__, function, str(folder)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return probed("measuring", tmp_path_factory.mktemp("measured"))


def recorded(values: dict[str, int], seconds: float = 1e-5) -> Any:
    mod = space.workload(probe.task().function)
    trace = space.candidate(mod, lut, probe.BACKEND, values).trace
    return ms.database.TuningRecord(trace, ms.database.Workload(mod), [seconds])


def write_log(folder: Path, *records: Any, **meta: Any) -> Path:
    """Write a log that holds `records` of the probe's task, the best first."""
    task = probe.task()
    entries = [log.entry(task.function, task.name, record) for record in records]
    run = {"tasks": [{"name": task.name}]}
    log.write(folder, PRESET, {log.key(task.function): entries}, meta, run)
    return folder


def test_a_record_gives_the_code_of_the_hand_schedule_with_its_knobs(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log", recorded(KNOBS))
    expected = probe.assembly(probe.by_hand(KNOBS))
    untuned = pipeline.defaults(lut, probe.BACKEND)
    assert expected != probe.assembly(probe.by_hand(untuned))  # knobs do something
    here, elsewhere = probe.replay(folder), probed("replay", folder)
    assert here["counts"] == elsewhere["counts"] == {"tuned": 1, "scheduled": 0, "fallback": 0}
    assert here["assembly"] == expected
    assert elsewhere["assembly"] == expected


def test_a_candidate_is_the_hand_schedule() -> None:
    mod = space.workload(probe.task().function)
    found = space.candidate(mod, lut, probe.BACKEND, KNOBS)
    assert space.knobs(found.trace, lut) == KNOBS
    sch = tvm.s_tir.Schedule(mod)
    lut.schedule(sch, probe.BACKEND, **KNOBS)
    tvm.ir.assert_structural_equal(found.mod, sch.mod)


def synthetic_cost(values: dict[str, int]) -> float:
    """Return a made-up time with a valley in every knob, and no noise."""
    cost = 1.0
    for weight, (name, knob) in enumerate(lut.KNOBS.items(), 1):
        best = knob.candidates[len(knob.candidates) // 2]
        cost += np.log2((1 + values[name]) / (1 + best)) ** 2 / weight
    return cost


def test_the_cost_model_ranks_what_it_has_not_seen() -> None:
    mod = space.workload(probe.task().function)
    points = list(itertools.product(*(knob.candidates for knob in lut.KNOBS.values())))
    chosen = [dict(zip(lut.KNOBS, p, strict=True)) for p in points[:: len(points) // 60]]
    order = np.random.default_rng(0).permutation(len(chosen))
    candidates = [
        ms.MeasureCandidate(space.candidate(mod, lut, probe.BACKEND, chosen[i]), []) for i in order
    ]
    costs = np.array([synthetic_cost(chosen[i]) for i in order])
    context = ms.TuneContext(mod=mod, target=tvm.target.Target(probe.BACKEND.target), num_threads=1)
    model, seen = space.cost_model(), 36
    results = [ms.runner.RunnerResult([cost], None) for cost in costs[:seen]]
    model.update(context, candidates[:seen], results)
    scores = np.asarray(model.predict(context, candidates[seen:]))
    assert rank_correlation(scores, -costs[seen:]) > 0.5  # chance is 0 ± 0.2


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_a_bad_candidate_costs_one_trial_and_never_wins(measured: dict[str, Any]) -> None:
    found = measured["sabotage"]
    assert found["count"] == 4 and found["failed"] == 3
    kinds = (probe.GOOD, probe.CRASHING, probe.HANGING, probe.WRONG)  # and REFUSED costs nothing
    assert found["trials"] == {str(kind): kind == probe.GOOD for kind in kinds}
    assert found["best"] == [probe.GOOD]


def test_a_fork_says_how_it_ended(measured: dict[str, Any]) -> None:
    said = measured["forks"]
    assert said["fine"] == [1.5, "two"]
    assert "ZeroDivisionError" in said["raises"] and "SystemExit" in said["leaves"]
    assert said["crashes"] == "crashed (SIGSEGV)"
    assert said["hangs"] == "took more than 1 s"


def trials_of(cache: Path) -> list[str]:
    """Return the whole lines of every search's records."""
    files = cache.glob(f"shiftadd-tvm/tuning_work/*/*/{search.RECORDS}")
    return [line for file in files for line in file.read_text().splitlines(keepends=True)]


def test_the_users_cache_is_out_of_reach(cache_of_the_tests: Path) -> None:
    assert log.places(PRESET)[0].is_relative_to(cache_of_the_tests)
    assert not log.places(PRESET)[0].is_relative_to(Path.home() / ".cache")
    child = [sys.executable, "-c", "from shiftadd_tvm.tuning import log; print(log.places('x')[0])"]
    said = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    assert Path(said.strip()).is_relative_to(cache_of_the_tests)


def test_a_killed_search_goes_on_where_it_was(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    request = tuner.TuneRequest(
        PRESET, str(tiny.packed), trials=12, minutes=0.001, output=str(tmp_path / "log")
    )
    words = json.dumps(tuner.asdict(request) | {"trials": 1000, "minutes": None})
    child = subprocess.Popen(
        [sys.executable, "-m", "shiftadd_tvm.tuning.child", words],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "TVM_NUM_THREADS": "1"},
    )
    while not trials_of(tmp_path):  # until the first batch is on disk
        assert child.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)  # in the middle of the second
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    finished = trials_of(tmp_path)
    assert finished and not (tmp_path / "log").exists()
    report = tuner.tune(request)
    (first, *_), after = report.tasks, trials_of(tmp_path)
    assert after[: len(finished)] == finished
    assert first["trials"] == len(after) > len(finished)
    decided = [json.dumps(probe._knobs(json.loads(line)[1][0])) for line in after]
    assert len(set(decided)) == len(decided)
    assert 0 < first["after_us"] <= first["before_us"]
    check_used_by_compiling(tiny, tmp_path / "log")


def check_used_by_compiling(tiny: Tiny, folder: Path) -> None:
    """Check that a log of the tiny model's own tasks is found for its functions."""
    module, _ = compiler.relax_module(open_packed(tiny.packed), probe.BACKEND, "int16")
    _, without = pipeline.apply_schedules(module, probe.BACKEND)
    _, counts = pipeline.apply_schedules(module, probe.BACKEND, log.open_logs(PRESET, folder))
    assert without["tuned"] == 0 and counts["tuned"] > 0
    assert sum(counts.values()) == sum(without.values())


def test_a_torn_line_of_a_killed_run_is_left_out(tmp_path: Path) -> None:
    task = probe.task()
    database = search._open(tmp_path, task, lut)
    workload = database.commit_workload(space.workload(task.function))
    database.commit_tuning_record(
        ms.database.TuningRecord(recorded(KNOBS).trace, workload, [1e-5], args_info=[])
    )
    records = tmp_path / search.RECORDS
    whole = records.read_text()
    records.write_text(whole + whole[: len(whole) // 2])
    assert len(search._open(tmp_path, task, lut)) == 1
    assert records.read_text().count("\n") == 1


@pytest.mark.parametrize("changed", [{"far": None}, {"far": Knob((0, 64), 0)}, {"near": Knob((1,), 1)}])
def test_trials_of_another_space_are_left_out(
    tmp_path: Path, changed: dict[str, Knob | None]
) -> None:
    """They would count as trials of this one, and lack what it looks for."""
    task = probe.task()
    database = search._open(tmp_path, task, lut)
    workload = database.commit_workload(space.workload(task.function))
    database.commit_tuning_record(
        ms.database.TuningRecord(recorded(KNOBS).trace, workload, [1e-5], args_info=[])
    )
    knobs = {name: knob for name, knob in (lut.KNOBS | changed).items() if knob}
    other = SimpleNamespace(KNOBS=knobs, restore=lut.restore)
    assert len(search._open(tmp_path, task, other)) == 0


def test_a_log_of_another_version_is_refused(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_log(tmp_path / "log", recorded(KNOBS))
    meta = json.loads((folder / log.META).read_text())
    meta["versions"][log.LIBRARY] = "0.19.0"
    (folder / log.META).write_text(json.dumps(meta))
    with pytest.raises(UnsupportedError, match=r"TVM 0\.19\.0, this is TVM .*tune again"):
        log.open_logs(PRESET, folder)
    child = call_here("compile", tiny.packed, "--tuning-log", folder, "-o", "app", cwd=tmp_path)
    fails(child, 3, "0.19.0", log.versions()[log.LIBRARY])
    assert not (tmp_path / "app").exists()
    # where nobody asked for it, compiling goes on without
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = log.places(PRESET)[0]
    own.parent.mkdir(parents=True)
    folder.rename(own)
    assert own not in [found.folder for found in log.open_logs(PRESET)]


def test_a_record_with_an_unknown_intrinsic_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_log(tmp_path / "log", recorded(KNOBS), recorded({**KNOBS, "unroll": 1}))
    records = folder / log.RECORDS
    lines = records.read_text().splitlines()
    version = f"_v{_lookup.VERSION}"
    lines[1] = lines[1].replace(version, f"_v{_lookup.VERSION - 1}")
    records.write_text("\n".join(lines))
    found = probe.replay(folder)
    assert found["counts"]["tuned"] == 1
    assert found["assembly"] == probe.assembly(probe.by_hand({**KNOBS, "unroll": 1}))
    records.write_text(records.read_text().replace(version, f"_v{_lookup.VERSION + 1}"))
    assert probe.replay(folder)["counts"] == {"tuned": 0, "scheduled": 1, "fallback": 0}


@pytest.mark.parametrize("isa", ["generic", *_lookup.PRIMITIVES])
def test_a_tile_is_its_name(isa: str) -> None:
    for rows, digits in ((32, (7, 7)), (64, (8,)), (512, (7, 7))):
        for far in (0, 4096):
            tile = _lookup.Tile(isa, rows, 4, 2, 128, digits, unroll=2, prefetch=1024, far=far)
            assert _lookup.Tile.parse(tile.name) == tile
            assert _lookup.Tile.parse(tile.name + "0") is None  # another version
    for name in ("", "shiftadd.lut", "dp4a", _lookup.Tile(isa, 32, 1, 1, 1, (8,)).name[1:]):
        assert _lookup.Tile.parse(name) is None and not _lookup.restore(name)


def test_logs_grow_by_tasks(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log", recorded(KNOBS), lookup_rows=2)
    other = [{"workload": "1", "task": "other", "op": "lut_query", "record": []}]
    log.write(folder, PRESET, {"1": other}, {}, {"tasks": [{"name": "other"}]})
    found = log.TuningLog(folder, PRESET)
    assert set(found.records) == {"1", log.key(probe.task().function)}
    assert [[t["name"] for t in run["tasks"]] for run in found.meta["runs"]] == [
        [probe.task().name],
        ["other"],
    ]
    assert log.lookup_rows([found]) == 2
    before = (folder / log.RECORDS).read_bytes()
    log.write(folder, PRESET, {"1": other}, {}, {"tasks": [{"name": "other"}]})
    assert (folder / log.RECORDS).read_bytes() == before
    assert len(log.TuningLog(folder, PRESET).meta["runs"]) == 2


def test_a_folder_of_logs_is_one_by_preset(tmp_path: Path) -> None:
    write_log(tmp_path / PRESET, recorded(KNOBS))
    assert log.open_logs(PRESET, tmp_path)[0].folder == tmp_path / PRESET
    with pytest.raises(UsageError, match="tuned for"):
        log.TuningLog(tmp_path / PRESET, "another")


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        (log.META, None, UsageError),
        (log.META, "{", BadFileError),
        (log.META, "[]", BadFileError),
        (log.META, "{}", UnsupportedError),
        (log.RECORDS, "{}", BadFileError),
        (log.RECORDS, "[1]", BadFileError),
        (log.RECORDS, '[{"task": "a"}]', BadFileError),
        (log.RECORDS, None, UsageError),
    ],
)
def test_a_damaged_log_is_one_sentence(
    tmp_path: Path, file: str, text: str | None, error: type[Exception]
) -> None:
    folder = write_log(tmp_path / "log", recorded(KNOBS))
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(error, match=r"^[^\n]+\.$"):
        log.open_logs(PRESET, folder)


@pytest.mark.parametrize("name", [n for n in tasks.SHIPPED if n in shapes.LLAMA])
def test_shipped_tasks_are_what_compiling_emits(name: str) -> None:
    config = {**shapes.config(name), "num_hidden_layers": 1, "vocab_size": 64}
    model = SyntheticModel(config, QuantizeSettings(bits=2, embedding_bits=8))
    module, _ = compiler.relax_module(model, probe.BACKEND, "int16")
    emitted = {task.name: task for task in tasks.of_module(module, probe.BACKEND)}
    shipped = {task.name: task for task in tasks.shipped(probe.BACKEND)}
    single = [task for task in emitted.values() if task.shape.tokens == 1]
    assert {task.shape.tokens for task in emitted.values()} == {1, 2, 4} and len(single) == 4
    for task in emitted.values():
        assert tasks.shape_of(task.shape.function(probe.BACKEND.rows)) == task.shape
        assert log.key(task.shape.function(probe.BACKEND.rows)) == log.key(task.function)
    for task in single:
        assert tvm_ffi.structural_equal(shipped[task.name].function, task.function)


def test_weights_come_from_where_the_model_has_them() -> None:
    shape, rows = probe.SHAPE, probe.BACKEND.rows
    one = 4 * int(np.prod(shape.tensors(rows)[2][0]))
    sets = lambda model: len(
        tasks.data(tasks.Task(None, shape, 1, model), rows, cold=100 * one).sets
    )
    assert [sets(m) for m in (one // 2, one, 8 * one, 10**12)] == [1, 1, 8, 100]


def test_the_crossover_is_the_last_number_of_tokens_that_pays() -> None:
    assert crossover.most([{1: (1, 9), 2: (2, 9), 4: (4, 9)}]) == 4
    assert (
        crossover.most([{1: (1, 9), 2: (8, 9), 4: (10, 9)}, {1: (1, 1), 2: (1, 1), 4: (1, 1)}]) == 2
    )
    assert crossover.most([{1: (9, 1), 2: (1, 9), 4: (1, 9)}]) == 1


def test_look_ups_are_compared_with_the_product(measured: dict[str, Any]) -> None:
    found = measured["crossed"]
    assert set(found) == {"1", "2", "4"} and all(t > 0 for pair in found.values() for t in pair)


class BusySite:
    """Where the last comparison of a task takes too long."""

    def space(self, module: Any) -> Any:
        return module

    def meter(self, *_: object) -> "BusySite":
        return self

    def prepare(self, untuned: IRModule) -> None:
        pass

    def compare(self, mods: list[IRModule]) -> list[float]:
        raise TrialError("took more than 60 s")


def test_a_comparison_that_fails_is_one_sentence(tmp_path: Path) -> None:
    site: Any = BusySite()
    one = search.Search(probe.task(), probe.BACKEND, tmp_path, site)
    with pytest.raises(GateError, match="took more than 60 s; what was measured is kept"):
        one.run(0, time.monotonic() + 60, lambda done, trials: None)


def test_what_cannot_be_tuned_is_one_sentence(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fails(call_here("tune", "--target", "x86-avx51", cwd=tmp_path), 3, "x86-avx51", "nearest")
    fails(call_here("tune", "--trials", "0", cwd=tmp_path), 2, "--trials", "at least 1")
    fails(call_here("tune", "--minutes", "0", cwd=tmp_path), 2, "--minutes", "more than 0")
    fails(call_here("tune", "--bits", "2", cwd=tmp_path), 2, "--bits", "SRC")
    fails(call_here("tune", tmp_path / "nothing", cwd=tmp_path), 4)
    (tmp_path / "full").mkdir()
    fails(call_here("tune", "-o", tmp_path / "full", cwd=tmp_path), 2, "is not replaced")
    fails(call_here("tune", tiny.packed, "--op", "nope", cwd=tmp_path), 2, "'nope'", "lut_query")
    monkeypatch.setattr(backend.Backend, "missing_features", lambda self: ["avx512bw"])
    fails(call_here("tune", "--target", PRESET, cwd=tmp_path), 3, "cannot be measured", "avx512bw")


def test_an_interruption_says_what_is_kept(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["tune", tiny.packed, "--trials", "1000", "-o", tmp_path / "log"]
    code, output = interrupt(words, "tuning: 0%", signal.SIGINT)
    assert code == 130 and "finished batches are kept" in output and "Traceback" not in output
    assert not (tmp_path / "log").exists()


def test_a_tuning_process_that_dies_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(tuner.GateError, match="exit status 1.*same command"):
        tuner.tune(tuner.TuneRequest(PRESET))


def test_an_unknown_operator_of_a_module_is_no_task() -> None:
    assert (
        tasks.of_module(IRModule({"main": probe.task().function}), probe.BACKEND)[0].shape
        == probe.SHAPE
    )
    other = probe.task().function.with_attr("shiftadd.op", "shift")
    assert tasks.of_module(IRModule({"main": other}), probe.BACKEND) == []
