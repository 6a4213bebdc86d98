"""How long a candidate takes: built and run in processes of its own, and checked while at it.

Every candidate is compiled in a fork of this process, which has imported everything, and run in
another. What crashes there, hangs, or computes other numbers than the untuned kernel costs one trial.
A fork ends by itself after its time (SIGALRM), even when nobody is left to wait for it.

Weights are rotated over copies that have as many bytes as the model's planes, at most as many as no
cache keeps: they come from where they come from in the model, memory or a cache. A fork sees the
parent's copies without copying them. Reported is the 25th percentile of single calls: a busy neighbour
moves the mean.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.ir import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.runner import PyRunner, RunnerResult
from tvm.s_tir.meta_schedule.runner.runner import PyRunnerFuture

COLD = 200 << 20  # bytes of weights that no cache of a board or a GPU keeps
PERCENTILE = 25
CALLS, SECONDS = 40, 0.15  # at least, of a candidate
BUILD_TIMEOUT, RUN_TIMEOUT = 60, 20  # seconds

Array = np.ndarray


class TrialError(Exception):
    """A candidate could not be built, crashed, hung, or computed something else."""


class Fork:
    """A function that runs in a fork of this process; `result` is what it returned, as JSON."""

    def __init__(self, work: Callable[[], object], timeout: int) -> None:
        """Start it; it ends after `timeout` seconds, whatever happens to this process."""
        reading, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reading)
            _child(work, timeout, writing)
        os.close(writing)
        self._reading, self._timeout = reading, timeout

    def result(self) -> Any:
        """Wait; raise `TrialError` with the reason when there is no result."""
        with os.fdopen(self._reading, "rb") as stream:
            answer = stream.read()
        _, status = os.waitpid(self._pid, 0)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            hung = f"took more than {self._timeout} s"
            raise TrialError(hung if name == "SIGALRM" else f"crashed ({name})")
        if not answer:
            raise TrialError(f"ended with status {os.waitstatus_to_exitcode(status)}")
        fields = json.loads(answer)
        if "error" in fields:
            raise TrialError(fields["error"])
        return fields["result"]


def _child(work: Callable[[], object], timeout: int, writing: int) -> None:
    """Run `work`, write its result or error as JSON, and leave without any of the parent's ends."""
    # every signal does what it does to a bare process: TVM would first print where it came from
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):  # some belong to the C library
            signal.signal(number, signal.SIG_DFL)
    signal.alarm(timeout)
    with _Answer(writing) as answer:
        answer.result = work()


class _Answer:
    """Ends the process with an answer, whatever the body did."""

    def __init__(self, writing: int) -> None:
        self._writing, self.result = writing, object()

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        answer: dict[str, object] = {"result": self.result}
        if kind is not None:
            answer = {"error": f"raised {kind.__name__}: {str(error)[-500:]}"}
        with os.fdopen(self._writing, "w") as stream:
            json.dump(answer, stream)
        os._exit(0)


@dataclass
class Data:
    """The arguments of a function: `sets` differ in the weights only; `expected` is its output."""

    sets: list[list[Any]]  # tensors, without the output
    output: tuple[tuple[int, ...], str]
    expected: Array | None = None
    tolerance: float = 0.0  # of the largest expected number; 0: equal

    def check(self, found: Array) -> None:
        """Raise `TrialError` unless an output of `sets[0]` is what it should be."""
        if self.expected is None:
            return
        if not self.tolerance:
            right = np.array_equal(found, self.expected, equal_nan=True)
        else:
            room = self.tolerance * float(np.abs(self.expected).max())
            right = bool(np.allclose(found, self.expected, rtol=0, atol=room, equal_nan=True))
        if not right:
            raise TrialError("computes other numbers than the untuned kernel")


def own_folder(folder: Path) -> Path:
    """Return a new folder in `folder`: nothing of a fork that is killed lies elsewhere."""
    return Path(tempfile.mkdtemp(dir=folder))


def build(mod: IRModule, target: Any, folder: Path) -> str:
    """Compile a module into a library in `folder`, in this process; return its path."""
    own = own_folder(folder)
    path = own / "kernel.so"
    with tvm.target.Target(target) as entered:
        tvm.compile(mod, entered).export_library(str(path), workspace_dir=str(own))
    return str(path)


def load(path: Path | str) -> Callable[..., None]:
    """Return the function of a library that `build` made."""
    return tvm.runtime.load_module(str(path))["main"]


def output(function: Callable[..., None], data: Data) -> Array:
    """Return what a function computes for the first set; unwritten parts are NaN."""
    shape, dtype = data.output
    result = tvm.runtime.tensor(np.full(shape, np.nan, dtype))
    function(*data.sets[0], result)
    return result.numpy()


def seconds(calls: Sequence[Callable[[int], object]], sets: int) -> list[float]:
    """Return the percentile of the single calls of each; they take turns.

    A call gets the number of the set of weights to read, below `sets`.
    """
    times, begin, rounds = [list[float]() for _ in calls], 0.0, 0
    while rounds * sets < CALLS or time.perf_counter() - begin < SECONDS * len(calls):
        for call, taken in zip(calls, times, strict=True):
            for index in range(sets):
                start = time.perf_counter()
                call(index)
                taken.append(time.perf_counter() - start)
        rounds += 1
        if rounds == 1:  # it only warmed up
            begin, times = time.perf_counter(), [[] for _ in calls]
    return [float(np.percentile(taken, PERCENTILE)) for taken in times]


def compared(paths: Sequence[str], data: Data) -> list[float]:
    """Return the seconds of each library's function after its output was checked; they take turns."""
    functions = [load(path) for path in paths]
    for function in functions:
        data.check(output(function, data))
    result = tvm.runtime.empty(*data.output)
    call = lambda function: lambda index: function(*data.sets[index], result)
    return seconds([call(function) for function in functions], len(data.sets))


@derived_object
class Builder(PyBuilder):
    """Builds candidates in forks, several at once; nothing is imported anew."""

    def __init__(self, folder: Path, workers: int, make: Callable[[Any, Any, Path], str]) -> None:
        super().__init__()
        self._folder, self._workers, self._make = folder, workers, make

    def build(self, build_inputs: Sequence[Any]) -> list[Any]:
        """Return a result for each input."""
        results: list[Any] = []
        for start in range(0, len(build_inputs), self._workers):
            some = build_inputs[start : start + self._workers]
            forks = [Fork(self._work(given), BUILD_TIMEOUT) for given in some]
            results += [_built(fork) for fork in forks]
        return results

    def _work(self, given: Any) -> Callable[[], str]:
        return lambda: self._make(given.mod, given.target, self._folder)


def _built(fork: Fork) -> Any:
    try:
        return BuilderResult(fork.result(), None)
    except TrialError as error:
        return BuilderResult(None, str(error))


@derived_object
class Runner(PyRunner):
    """Checks and times candidates, one after the other, each in a fork."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self._data = data

    def run(self, runner_inputs: Sequence[Any]) -> list[Any]:
        """Return a future for each input, whose result is there."""
        return [Done(self._one(str(given.artifact_path))) for given in runner_inputs]

    def _one(self, path: str) -> Any:
        try:
            taken = Fork(lambda: compared([path], self._data), RUN_TIMEOUT).result()
            return RunnerResult(taken, None)
        except TrialError as error:
            return RunnerResult(None, str(error))
        finally:
            shutil.rmtree(Path(path).parent)


@derived_object
class Done(PyRunnerFuture):
    """A result that is there already."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = result

    def done(self) -> bool:
        """Say that there is nothing to wait for."""
        return True

    def result(self) -> Any:
        """Return the result."""
        return self._result
