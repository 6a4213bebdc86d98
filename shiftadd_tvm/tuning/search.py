"""The search for one task: propose, measure, write down, learn; begun anew where it was killed.

MetaSchedule's evolutionary search proposes batches, guided by its xgboost model; the loop is ours,
because TVM's would forget on a restart what was measured and how much of the budget it cost. Every
batch is appended to a JSON database of the task's own before the next begins: a killed run loses one.
"""

import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import tvm
import tvm_ffi
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import ScheduleError

from shiftadd_tvm import pipeline
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.errors import GateError
from shiftadd_tvm.files import canonical_json, user_cache
from shiftadd_tvm.tuning import log as logs
from shiftadd_tvm.tuning import space
from shiftadd_tvm.tuning.measure import TrialError
from shiftadd_tvm.tuning.tasks import Task

BATCH = 8
KEPT = 3  # records of a task in a log
POPULATION, GENERATIONS = 16, 2  # making a candidate takes 50 ms, and a space has some hundred
SMALL = 32  # points of a space that is gone through, nearest to the untuned one first
EMPTY = 3  # batches without a new candidate: everything has been measured
FAILED = 1e10  # seconds, by which MetaSchedule marks a trial without a time
WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"

logger = logging.getLogger(__name__)
chatter = logging.getLogger(f"{__name__}.metaschedule")  # pages for every batch
chatter.setLevel(logging.WARNING)

Progress = Callable[[int, int], None]  # trials done, trials in all


@dataclass(frozen=True)
class Found:
    """What a search found: the best records first, and times of the same turns."""

    records: list[Any]
    before: float  # seconds, untuned
    after: float
    trials: int
    failed: int


class Meter(Protocol):
    """What gives the candidates of one task their times."""

    builder: Any  # MetaSchedule's
    runner: Any

    def prepare(self, untuned: IRModule) -> None:
        """Make ready, with the untuned kernel; raises `TrialError` when it cannot be measured."""

    def compare(self, mods: list[IRModule]) -> list[float]:
        """Return the seconds of kernels that have run before, in turns; raises `TrialError`."""


class Site(Protocol):
    """Where candidates get their times: this machine, a board, or a model of one."""

    measured: str  # how, as a log says it
    device: dict[str, Any]  # what times depend on
    keeps: bool  # False: times mean nothing, and no log is written

    def space(self, module: ModuleType) -> ModuleType:
        """Return the schedule module with the knobs that are worth searching there."""

    def meter(self, task: Task, backend: Backend, scratch: Path) -> Meter:
        """Return what times the candidates of a task; it may keep files in `scratch`."""

    def weights(self, task: Task) -> str:
        """Return where a task's weights come from, in a word: "cold" or "cached"."""

    def lookup_rows(
        self, found: list[Task], backend: Backend, log: Path, folder: Path, end: float
    ) -> int | None:
        """Return up to how many tokens look-ups pay, None if unknown; raises `TrialError`."""


class Search:
    """The search for one task; all it keeps lies in a folder of its own."""

    def __init__(self, task: Task, backend: Backend, folder: Path, site: Site) -> None:
        """Measure the untuned kernel, whose output every candidate must reproduce."""
        self._task, self._backend, self._folder = task, backend, folder
        self._module = site.space(pipeline.schedules(backend.family)[task.op])
        self._mod = space.workload(task.function)
        self._target = tvm.target.Target(backend.target)
        self._scratch = folder / "scratch"
        _empty(self._scratch)
        self._meter = site.meter(task, backend, self._scratch)
        try:
            self._meter.prepare(self._default().mod)
        except TrialError as error:
            raise GateError(
                f"The untuned kernel of {self._task.name} cannot be measured: it {error}; please "
                "report it with the command you ran."
            ) from error

    def _default(self) -> Schedule:
        values = pipeline.defaults(self._module, self._backend)
        return space.candidate(self._mod, self._module, self._backend, values)

    def run(self, trials: int, until: float, progress: Progress) -> Found:
        """Measure up to `trials` candidates, those of earlier runs included; return the best,
        compared with the untuned one in turns. No batch but the first begins after `until` (of
        `time.monotonic`)."""
        database = _open(self._folder, self._task, self._module)
        measured = _Measured(database, self._mod)
        progress(min(measured.count, trials), trials)
        if measured.count < trials:
            self._search(database, measured, trials, until, progress)
        best = measured.best(KEPT)
        before, times = self._compare([record.as_measure_candidate().sch for record in best])
        order = np.argsort(times, kind="stable")
        records = [_timed(best[index], times[index]) for index in order]
        after = min([before, *times])
        shutil.rmtree(self._scratch)
        return Found(records, before, after, measured.count, measured.failed)

    def _search(
        self, database: Any, measured: "_Measured", trials: int, until: float, progress: Progress
    ) -> None:
        model, context = space.cost_model(), self._context()
        left = trials - measured.count
        context.pre_tuning(left + EMPTY * BATCH, BATCH, None, database, model)
        if measured.candidates:
            model.update(context, measured.candidates, measured.results)
        for batch in self._batches(context, measured, left):
            results = self._measure(batch)
            for candidate, result in zip(batch, results, strict=True):
                measured.add(candidate, result, database.commit_tuning_record)
            context.notify_runner_results(batch, results)
            model.update(context, batch, results)
            progress(measured.count, trials)
            if time.monotonic() > until:
                break
        context.post_tuning()

    def _context(self) -> Any:
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=POPULATION,
            init_min_unmeasured=BATCH,
            genetic_num_iters=GENERATIONS,
            eps_greedy=0.1,
        )
        return ms.TuneContext(
            mod=self._mod,
            target=self._target,
            space_generator=space.generator(self._module, self._backend),
            search_strategy=strategy,
            task_name=self._task.name,
            num_threads=1,
            logger=chatter,
        )

    def _batches(self, context: Any, measured: "_Measured", left: int) -> Iterator[list[Any]]:
        """Yield batches of candidates that were never measured, the untuned one among the first."""
        args = ms.arg_info.ArgInfo.from_entry_func(self._mod, remove_preproc=False)
        first = [ms.MeasureCandidate(self._default(), args)]
        points = list(space.points(self._module))
        if len(points) <= SMALL:
            found = (ms.MeasureCandidate(sch, args) for sch in self._schedules(points))
            new = itertools.islice(measured.unknown(found), left)
            while batch := list(itertools.islice(new, BATCH)):
                yield batch
            return
        empty = 0
        while left > 0 and empty < EMPTY:
            proposed = context.generate_measure_candidates()
            if proposed is None:
                return
            batch = list(measured.unknown([*first, *proposed]))[:left]
            first, left = [], left - len(batch)
            empty = 0 if batch else empty + 1
            if batch:
                yield batch

    def _schedules(self, points: list[dict[str, int]]) -> Iterator[Schedule]:
        """Yield the candidate of each point whose values go together."""
        for values in points:
            with suppress(ScheduleError):
                yield space.candidate(self._mod, self._module, self._backend, values)

    def _measure(self, batch: list[Any]) -> list[Any]:
        inputs = [ms.builder.BuilderInput(c.sch.mod, self._target) for c in batch]
        results: list[Any] = []
        given: list[Any] = []
        for candidate, built in zip(batch, self._meter.builder.build(inputs), strict=True):
            if built.error_msg is None:
                given.append(
                    ms.runner.RunnerInput(built.artifact_path, "cpu", candidate.args_info)
                )
            results.append(None if built.error_msg is None else _failed(built.error_msg))
        times = iter([future.result() for future in self._meter.runner.run(given)])
        results = [next(times) if result is None else result for result in results]
        for candidate, result in zip(batch, results, strict=True):
            if result.error_msg is not None:
                values = space.knobs(candidate.sch.trace, self._module)
                logger.info("%s %s: %s", self._task.name, values, result.error_msg)
        return results

    def _compare(self, schedules: list[Schedule]) -> tuple[float, list[float]]:
        """Return the seconds of the untuned kernel and of others, which have run before."""
        mods = [sch.mod for sch in (self._default(), *schedules)]
        try:
            before, *times = self._meter.compare(mods)
        except TrialError as error:
            raise GateError(
                f"The best kernels of {self._task.name} cannot be compared with the untuned one: that "
                f"{error}; what was measured is kept, run the same command again when the machine is "
                "less busy."
            ) from error
        return before, times


def _failed(reason: str) -> Any:
    return ms.runner.RunnerResult(None, reason)


class _Measured:
    """What has been measured of a task, in this run and in earlier ones."""

    def __init__(self, database: Any, mod: IRModule) -> None:
        self._workload = database.commit_workload(mod)
        self._records = list(database.get_all_tuning_records())
        self.candidates = [record.as_measure_candidate() for record in self._records]
        self.results = [ms.runner.RunnerResult(_numbers(r), None) for r in self._records]
        self._known = {_identity(candidate) for candidate in self.candidates}

    @property
    def count(self) -> int:
        """The trials that were paid for."""
        return len(self._records)

    @property
    def failed(self) -> int:
        """The trials without a time."""
        return sum(_numbers(record)[0] >= FAILED for record in self._records)

    def unknown(self, candidates: Iterable[Any]) -> Iterator[Any]:
        """Yield each candidate that is neither measured nor yielded before."""
        for candidate in candidates:
            if _identity(candidate) not in self._known:
                self._known.add(_identity(candidate))
                yield candidate

    def add(self, candidate: Any, result: Any, commit: Callable[[Any], None]) -> None:
        """Write down one measured candidate."""
        taken = [FAILED] if result.run_secs is None else _numbers(result)
        record = ms.database.TuningRecord(
            candidate.sch.trace, self._workload, taken, args_info=candidate.args_info
        )
        commit(record)
        self._records.append(record)

    def best(self, count: int) -> list[Any]:
        """Return the fastest records."""
        whole = [record for record in self._records if _numbers(record)[0] < FAILED]
        return sorted(whole, key=lambda record: _numbers(record)[0])[:count]


def _identity(candidate: Any) -> int:
    """Return what two candidates share whose knobs differ, but not what they make of the code."""
    return int(tvm_ffi.structural_hash(candidate.sch.mod))


def _numbers(timed: Any) -> list[float]:
    return [float(seconds) for seconds in timed.run_secs]


def _timed(record: Any, seconds: float) -> Any:
    return ms.database.TuningRecord(
        record.trace, record.workload, [seconds], record.target, record.args_info
    )


def _empty(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _open(folder: Path, task: Task, module: ModuleType) -> Any:
    """Return the task's database, without what a killed run or another version left in it."""
    workloads, records = folder / WORKLOADS, folder / RECORDS
    same = lambda workload: workload[0] == logs.key(task.function)
    known = lambda record: all(module.restore(name) for name in logs.intrinsics(record))
    usable = lambda line: space.drew_from(line[1], module) and known(line[1])
    if _keep(workloads, same):
        _keep(records, usable)
    else:
        records.unlink(missing_ok=True)
    return ms.database.JSONDatabase(str(workloads), str(records))


def _keep(path: Path, wanted: Callable[[Any], bool]) -> bool:
    """Drop the lines of a file that are torn or not wanted; tell whether any line is left."""
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if _whole(line) and wanted(json.loads(line))]
    if kept != lines:
        path.write_text("".join(kept), encoding="utf-8")
    return bool(kept)


def _whole(line: str) -> bool:
    """Tell whether a line was written to its end: the last one of a killed run may not be."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith("\n")


def work_folder(preset: str, device: dict[str, Any]) -> Path:
    """Return where unfinished searches lie: times of another machine or version do not mix in."""
    same = canonical_json({"device": device, "versions": logs.versions()})
    return user_cache() / "tuning_work" / f"{preset}-{hashlib.sha256(same).hexdigest()[:12]}"
