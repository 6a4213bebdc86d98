"""What the tests of tuning run in a process of their own: measuring forks, and a fork has no threads.

python tuning_probe.py FUNCTION FOLDER     prints the function's result as JSON
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from shiftadd_tvm.tuning import child

child.spare_intrinsics()

import tvm  # noqa: E402
from tvm.ir import IRModule  # noqa: E402
from tvm.s_tir import Schedule, TensorIntrin  # noqa: E402
from tvm.tirx.script import builder as T  # noqa: E402

from shiftadd_tvm import backend, pipeline  # noqa: E402
from shiftadd_tvm.backend import Knob  # noqa: E402
from shiftadd_tvm.schedules.llvm import _lookup, lut  # noqa: E402
from shiftadd_tvm.tuning import crossover, local, log, measure, search, space, tasks  # noqa: E402

BACKEND = backend.detect()
SHAPE = tasks.Shape(
    outputs=128, steps=8, bits=2, tokens=1, row_terms=2, plane_terms=2, bias=True, digits=2
)
GOOD, CRASHING, HANGING, WRONG, REFUSED = range(5)
KINDS = {CRASHING: "crashing", HANGING: "hanging", WRONG: "wrong"}


def task(shape: tasks.Shape = SHAPE) -> tasks.Task:
    return tasks.Task(shape.function(BACKEND.rows), shape, shape.nbytes, 4 * shape.nbytes)


def assembly(mod: IRModule) -> str:
    """Return the assembly of a scheduled workload."""
    target = tvm.target.Target(BACKEND.target)
    return str(tvm.compile(space.workload(mod["main"]), target).mod.inspect_source("asm"))


def by_hand(values: dict[str, int]) -> IRModule:
    sch = Schedule(IRModule({"main": task().function}))
    lut.schedule(sch, BACKEND, **values)
    return sch.mod


def _bad(tile: _lookup.Tile, kind: int) -> str:
    """Register the intrinsic of `tile` with an implementation that is bad in this way."""

    def body(planes: Any, tables: Any, sums: Any) -> None:
        if kind == CRASHING:
            T.evaluate(T.call_llvm_intrin("void", "llvm.trap"))
        elif kind == HANGING:
            with T.While(planes[0, 0, 0, 0] == planes[0, 0, 0, 0]):
                T.buffer_store(sums, sums[0, 0, 0, 0, 0] + T.uint32(1), [0, 0, 0, 0, 0])
        else:
            T.buffer_store(sums, sums[0, 0, 0, 0, 0] + T.uint32(1), [0, 0, 0, 0, 0])

    name = f"{tile.name}_{KINDS[kind]}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        kernel = _lookup.intrinsic(_lookup._buffers(tile), body)
        TensorIntrin.register(name, _lookup._description(tile), kernel)
    return name


def _schedule(sch: Schedule, preset: backend.Backend, *, kind: int) -> None:
    if kind == REFUSED:
        sch.parallel(sch.get_loops(sch.get_sblock("sums"))[-1])  # a reduction: TVM refuses
    register = _lookup.register
    chosen = register if kind == GOOD else lambda tile: _bad(tile, kind)
    with mock.patch.object(_lookup, "register", chosen):
        lut.schedule(sch, preset, **pipeline.defaults(lut, preset))


SABOTAGED = SimpleNamespace(
    KNOBS={"kind": Knob((GOOD, CRASHING, HANGING, WRONG, REFUSED), GOOD)},
    schedule=_schedule,
    restore=_lookup.restore,
)


def sabotage(folder: Path) -> object:
    """Search a space of which most is bad; return what each trial came to."""
    with (
        mock.patch.object(pipeline, "schedules", lambda family: {"lut_query": SABOTAGED}),
        mock.patch.object(measure, "RUN_TIMEOUT", 2),
    ):
        found = search.Search(task(), BACKEND, folder, local.Site(1)).run(
            4, time.monotonic() + 60, _quiet
        )
    lines = [json.loads(line) for line in (folder / search.RECORDS).read_text().splitlines()]
    trials = {}
    for _, (trace, seconds, *_) in lines:
        (kind,) = _knobs(trace)
        trials[kind] = seconds[0] < search.FAILED
    best = [space.knobs(record.trace, SABOTAGED)["kind"] for record in found.records]
    return {"trials": trials, "best": best, "failed": found.failed, "count": found.trials}


def _knobs(trace: Any) -> list[int]:
    """Return the knob values of a trace in JSON."""
    instructions, decisions = trace
    return [instructions[at][2][0][chosen] for at, chosen in decisions]


def _quiet(done: int, trials: int) -> None:
    pass


def forks(folder: Path) -> object:
    """Return what becomes of work in forks."""

    def crash() -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGSEGV)

    def hang() -> None:
        while True:
            pass

    said = {}
    for name, work in {
        "fine": lambda: [1.5, "two"],
        "raises": lambda: 1 // 0,
        "leaves": lambda: sys.exit(3),
        "crashes": crash,
        "hangs": hang,
    }.items():
        try:
            said[name] = measure.Fork(work, 1).result()
        except measure.TrialError as error:
            said[name] = str(error)
    return said


def crossed(folder: Path) -> object:
    """Measure look-ups against the product, without any record."""
    log.write(folder, BACKEND.name, {}, {}, {"tasks": []})
    return {str(k): v for k, v in crossover.times(task(), BACKEND, folder, folder).items()}


def measuring(folder: Path) -> object:
    """Return the results of all that takes long to import."""
    return {f.__name__: f(folder / f.__name__) for f in (forks, sabotage, crossed)}


def replay(folder: Path) -> object:
    """Return the assembly of the task as compiling makes it with the log in `folder`."""
    logs = [log.TuningLog(folder, BACKEND.name)]
    module, counts = pipeline.apply_schedules(IRModule({"main": task().function}), BACKEND, logs)
    return {"counts": dict(counts), "assembly": assembly(module)}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
