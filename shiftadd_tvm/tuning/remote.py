"""Tuning on boards: candidates are built here, uploaded, and timed there, by TVM's tracker and RPCRunner.

Several boards of one key measure at once. A session ends with its candidate: what hangs or crashes costs
one trial. Every candidate's output is compared with the untuned kernel's on the same data; between two
calls as many other bytes go by as the model's planes have. Of an emulated board nothing is kept.
"""

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tvm
from tvm.ir import IRModule
from tvm.s_tir import meta_schedule as ms

from shiftadd_tvm import boards, cpu, toolchain
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.tuner import BoardAddress
from shiftadd_tvm.tuning import measure
from shiftadd_tvm.tuning.measure import COLD, PERCENTILE, Data, Fork
from shiftadd_tvm.tuning.tasks import Task, data

CALLS, ROUNDS = 20, 3  # timed calls of a candidate; turns of a comparison
TIMEOUT = 600  # seconds, of what runs on a board at the beginning and the end
EXPECTED = "expected.npy"


def build(machine: str, mod: IRModule, target: Any, folder: Path) -> str:
    """Compile a module into a library for another machine in `folder`; return its path."""
    own = measure.own_folder(folder)
    path = own / "kernel.so"
    linker = toolchain.find_linker(machine)
    link = lambda output, objects, **_: linker.link(Path(output), objects)
    with tvm.target.Target(target) as entered:
        made = tvm.compile(mod, entered)
        made.export_library(str(path), fcompile=link, workspace_dir=str(own))
    return str(path)


def allocate(given: Data, _session: Any, device: Any, _info: Any, _repeat: int) -> list[list[Any]]:
    """Return a task's arguments on a board, the output full of NaN."""
    shape, dtype = given.output
    arrays = [tensor.numpy() for tensor in given.sets[0]]
    return [[tvm.runtime.tensor(a, device) for a in [*arrays, np.full(shape, np.nan, dtype)]]]


def evaluate(
    given: Data, other: int, _session: Any, module: Any, device: Any, _config: Any, arguments: Any
) -> list[float]:
    """Check a kernel's output on a board and return its seconds; `other` bytes go by between calls."""
    module["main"](*arguments[0])
    given.check(arguments[0][-1].numpy())
    return [float(np.percentile(_times(module, device, other, arguments[0]), PERCENTILE))]


def leave(_session: Any, _path: str | None) -> None:
    """Remove nothing on a board: its server removes the session's folder."""


def _times(module: Any, device: Any, other: int, arguments: list[Any]) -> list[float]:
    timed = module.time_evaluator("main", device, 1, CALLS, cache_flush_bytes=other)
    return list(timed(*arguments).results)


class Meter:
    """Times candidates of one task on boards."""

    def __init__(self, task: Task, backend: Backend, scratch: Path, address: BoardAddress) -> None:
        """Nothing is uploaded yet."""
        self._scratch, self._address, self._backend = scratch, address, backend
        self._target = tvm.target.Target(backend.target)
        self._other = min(task.model_bytes, COLD)
        self._data = data(task, backend.rows, cold=0)
        self._build = partial(build, backend.machine)
        self.builder = measure.Builder(scratch, cpu.cores(), self._build)
        self.runner: Any = None

    def prepare(self, untuned: IRModule) -> None:
        """Run the untuned kernel on a board, and start what will run candidates there."""
        path = self._scratch / EXPECTED

        def run() -> None:
            (function,), arguments, _ = self._upload([untuned])
            function["main"](*arguments)
            np.save(path, arguments[-1].numpy())

        Fork(run, TIMEOUT).result()
        self._data.expected = np.load(path)
        given = Plain(self._data)
        config = ms.runner.RPCConfig(
            tracker_host=self._address.host,
            tracker_port=self._address.port,
            tracker_key=self._address.key,
            session_timeout_sec=boards.SESSION,
        )
        self.runner = ms.runner.RPCRunner(
            config,
            f_alloc_argument=given.allocate,
            f_run_evaluator=partial(given.evaluate, self._other),
            f_cleanup=leave,
            max_workers=boards.count(self._address),
        )

    def _upload(self, mods: list[IRModule]) -> tuple[list[Any], list[Any], Any]:
        """Return kernels and arguments on a board, and its device."""
        session = boards.request(self._address)
        loaded = []
        for number, mod in enumerate(mods):
            name = f"kernel{number}.so"
            session.upload(self._build(mod, self._target, self._scratch), name)
            loaded.append(session.load_module(name))
        device = session.cpu(0)
        return loaded, allocate(self._data, session, device, None, 1)[0], device

    def compare(self, mods: list[IRModule]) -> list[float]:
        """Return the seconds of kernels that have run before, in turns on one board."""

        def run() -> list[float]:
            loaded, arguments, device = self._upload(mods)
            turns = [
                [_times(module, device, self._other, arguments) for module in loaded]
                for _ in range(ROUNDS)
            ]
            return [float(np.percentile(sum(of, []), PERCENTILE)) for of in zip(*turns, strict=True)]

        times: list[float] = Fork(run, TIMEOUT).result()
        return times


class Plain:
    """A task's data as arrays, since what RPCRunner's workers get is pickled."""

    def __init__(self, given: Data) -> None:
        """Keep the first set, the output's shape, and what is expected."""
        self._arrays = [tensor.numpy() for tensor in given.sets[0]]
        self._output, self._expected = given.output, given.expected

    def _data(self) -> Data:
        tensors = [tvm.runtime.tensor(array) for array in self._arrays]
        return Data([tensors], self._output, self._expected)

    def allocate(self, *rest: Any) -> list[list[Any]]:
        """As `allocate`, in a worker."""
        return allocate(self._data(), *rest)

    def evaluate(self, other: int, *rest: Any) -> list[float]:
        """As `evaluate`, in a worker."""
        return evaluate(self._data(), other, *rest)


class Site:
    """The boards of one key."""

    measured = "rpc"

    def __init__(self, backend: Backend, address: BoardAddress) -> None:
        """Ask one of them what it is; raises `UnsupportedError`."""
        self._address = address
        number = boards.count(address)
        board = boards.describe(boards.request(address))
        if missing := board.missing(backend):
            raise UnsupportedError(
                f"The board {board.name} cannot run {backend.name}: it lacks {', '.join(missing)}; "
                "choose another --target."
            )
        self.keeps = not board.emulated
        self.device: dict[str, Any] = {
            **{"cpu": board.processor, "cores": board.cores, "key": address.key},
            **{"boards": number, "emulated": board.emulated},
        }

    def space(self, module: ModuleType) -> ModuleType:
        """Return the schedule module whose knobs are searched: whole."""
        return module

    def meter(self, task: Task, backend: Backend, scratch: Path) -> Meter:
        """Return what times the candidates of a task."""
        return Meter(task, backend, scratch, self._address)

    def weights(self, task: Task) -> str:
        """Return where a task's weights come from, in a word."""
        return "cold"

    def lookup_rows(
        self, found: list[Task], backend: Backend, log: Path, folder: Path, end: float
    ) -> int | None:
        """Return None: the product that look-ups compete with is not uploaded."""
        return None
