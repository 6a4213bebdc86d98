"""Tuning on this machine: candidates run here, in forks, and are timed by its clock."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tvm
from tvm.ir import IRModule

from shiftadd_tvm import cpu
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.tuning import crossover, measure
from shiftadd_tvm.tuning.measure import Fork
from shiftadd_tvm.tuning.tasks import Task, data


class Meter:
    """Times candidates of one task."""

    def __init__(self, task: Task, backend: Backend, scratch: Path) -> None:
        """Make the task's data; nothing runs yet."""
        self._data = data(task, backend.rows)
        self._target = tvm.target.Target(backend.target)
        self._scratch = scratch
        self.builder = measure.Builder(scratch, cpu.cores(), measure.build)
        self.runner = measure.Runner(self._data)

    def prepare(self, untuned: IRModule) -> None:
        """Run the untuned kernel, whose output every candidate must reproduce; raises `TrialError`."""
        path = self._scratch / "expected.npy"

        def run() -> None:
            function = measure.load(measure.build(untuned, self._target, self._scratch))
            np.save(path, measure.output(function, self._data))

        Fork(run, measure.BUILD_TIMEOUT).result()
        self._data.expected = np.load(path)

    def compare(self, mods: list[IRModule]) -> list[float]:
        """Return the seconds of kernels that have run before, in turns; raises `TrialError`."""

        def run() -> list[float]:
            paths = [measure.build(mod, self._target, self._scratch) for mod in mods]
            return measure.compared(paths, self._data)

        times: list[float] = Fork(run, measure.BUILD_TIMEOUT).result()
        return times


class Site:
    """This machine, with kernels that run on so many threads."""

    measured = "local"
    keeps = True

    def __init__(self, threads: int) -> None:
        """Nothing is measured yet."""
        caches = cpu.caches()
        self.device: dict[str, Any] = {
            **{"cpu": cpu.model(), "cores": cpu.cores()},
            **{"caches": caches, "threads": threads},
        }
        self._last = caches.get("L3", 0)

    def space(self, module: ModuleType) -> ModuleType:
        """Return the schedule module whose knobs are searched: whole."""
        return module

    def meter(self, task: Task, backend: Backend, scratch: Path) -> Meter:
        """Return what times the candidates of a task."""
        return Meter(task, backend, scratch)

    def weights(self, task: Task) -> str:
        """Return where a task's weights come from, in a word."""
        return "cached" if task.model_bytes < self._last // 2 else "cold"

    def lookup_rows(
        self, found: list[Task], backend: Backend, log: Path, folder: Path, end: float
    ) -> int | None:
        """Return up to how many tokens look-ups pay; raises `TrialError`."""
        return crossover.rows(found, backend, log, folder, end)
