"""Tuning with no board at hand: candidates are compiled, and their look-up loop is timed by llvm-mca.

Nothing runs. The loop is found in the machine code (`kernel_inspection`), and must be the one that looks
up; its cycles times its turns are the candidate's time, on a processor of `CLOCK`. Knobs that decide what
memory does keep their untuned value: the model would always choose no prefetching.
"""

from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import tvm
from tvm.ir import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.runner import PyRunner, RunnerResult

from shiftadd_tvm import cpu, timing_model
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.kernel_inspection import busiest_loop
from shiftadd_tvm.timing_model import ModelError, TimingModel
from shiftadd_tvm.tuning import measure
from shiftadd_tvm.tuning.measure import Fork, TrialError
from shiftadd_tvm.tuning.tasks import Task

CLOCK = 1e9  # Hz, of the processor whose times are told: they are cycles in thousands
LOOK_UP, WIDTH = "tbl", 16  # NEON's look-up instruction, and the bytes that it looks up


def build(mod: IRModule, target: Any, folder: Path) -> str:
    """Compile a module into an object file in `folder`; return its path."""
    path = measure.own_folder(folder) / "kernel.o"
    with tvm.target.Target(target) as entered:
        tvm.compile(mod, entered).mod.write_to_file(str(path), "o")
    return str(path)


def seconds(path: Path, task: Task, backend: Backend, model: TimingModel) -> float:
    """Return the time of a compiled task by the model; raises `TrialError` where it has none."""
    loop, decided = busiest_loop(path, "main")
    look_ups = sum(i.mnemonic == LOOK_UP for i in loop)
    if not decided or not look_ups:
        raise TrialError("has no loop that runs most and looks up")
    # a byte of a plane is looked up by halves, in each digit's table, for every token
    turn = look_ups * WIDTH / (2 * task.bytewise.digits * task.bytewise.tokens)
    planes = 4 * prod(task.shape.tensors(backend.rows)[2][0])
    try:
        return planes / turn * model.cycles(loop, backend.model, backend.machine) / CLOCK
    except ModelError as error:
        raise TrialError(f"cannot be modelled: {error}") from error


@derived_object
class Runner(PyRunner):
    """Models candidates; it runs none."""

    def __init__(self, task: Task, backend: Backend, model: TimingModel) -> None:
        super().__init__()
        self._task, self._backend, self._model = task, backend, model

    def run(self, runner_inputs: list[Any]) -> list[Any]:
        """Return a future for each input, whose result is there."""
        return [measure.Done(self._one(Path(str(g.artifact_path)))) for g in runner_inputs]

    def _one(self, path: Path) -> Any:
        try:
            return RunnerResult([seconds(path, self._task, self._backend, self._model)], None)
        except TrialError as error:
            return RunnerResult(None, str(error))


class Meter:
    """Models candidates of one task."""

    def __init__(self, task: Task, backend: Backend, scratch: Path, model: TimingModel) -> None:
        """Nothing is compiled yet."""
        self._task, self._backend, self._scratch, self._model = task, backend, scratch, model
        self.builder = measure.Builder(scratch, cpu.cores(), build)
        self.runner = Runner(task, backend, model)

    def prepare(self, untuned: IRModule) -> None:
        """Check that the untuned kernel can be modelled; raises `TrialError`."""
        self.compare([untuned])

    def compare(self, mods: list[IRModule]) -> list[float]:
        """Return the times of kernels by the model; raises `TrialError`."""
        target = self._backend.target

        def compile_() -> list[str]:
            return [build(mod, target, self._scratch) for mod in mods]

        paths = Fork(compile_, measure.BUILD_TIMEOUT).result()
        return [seconds(Path(path), self._task, self._backend, self._model) for path in paths]


class Site:
    """A processor that is known by its model only."""

    measured = "static-model"
    keeps = True

    def __init__(self, backend: Backend) -> None:
        """Find the model; `UnsupportedError` says how to get it."""
        self._model = timing_model.find()
        self.device: dict[str, Any] = {
            **{"cpu": backend.model, "clock_hz": int(CLOCK)},
            **{"model": self._model.name, "threads": 1},
        }

    def space(self, module: ModuleType) -> ModuleType:
        """Return the schedule module with the knobs that a model can rank; the others are fixed."""
        knobs = {name: knob.fixed if knob.memory else knob for name, knob in module.KNOBS.items()}
        seen = SimpleNamespace(KNOBS=knobs, schedule=module.schedule, restore=module.restore)
        return cast(ModuleType, seen)

    def meter(self, task: Task, backend: Backend, scratch: Path) -> Meter:
        """Return what models the candidates of a task."""
        return Meter(task, backend, scratch, self._model)

    def weights(self, task: Task) -> str:
        """Return where a task's weights come from, in a word."""
        return "cached"

    def lookup_rows(
        self, found: list[Task], backend: Backend, log: Path, folder: Path, end: float
    ) -> int | None:
        """Return None: the product that look-ups compete with is not modelled."""
        return None
