"""One request at work: every task in turn, then the log."""

import fcntl
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shiftadd_tvm import __version__, compiler
from shiftadd_tvm import backend as backends
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.errors import UnsupportedError, UsageError
from shiftadd_tvm.files import user_cache
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.tuner import META, BoardAddress, TuneRequest
from shiftadd_tvm.tuning import local, search, static_model, tasks
from shiftadd_tvm.tuning import log as logs
from shiftadd_tvm.tuning.measure import TrialError
from shiftadd_tvm.tuning.search import Site
from shiftadd_tvm.tuning.tasks import Task

log = logging.getLogger(__name__)

Fields = dict[str, Any]
Progress = Callable[[int, int, str], None]  # trials done, trials in all, the task


def site_of(backend: Backend, request: TuneRequest) -> Site:
    """Return where candidates get their times: on boards, here, or from a model of another machine."""
    if request.rpc is not None:
        from shiftadd_tvm.tuning import remote  # TVM's RPC is imported where it is used only

        return remote.Site(backend, BoardAddress.parse(request.rpc))
    return local.Site(request.threads) if backend.runs_here() else static_model.Site(backend)


def find_tasks(request: TuneRequest, backend: Backend) -> list[Task]:
    """Return the tasks of a request; raises `UsageError` or `UnsupportedError` when it has none."""
    known = tasks.tunable(backend)
    if request.op is not None and request.op not in known:
        raise UsageError(
            f"--op is {request.op!r}, expected one of {', '.join(known)}, which have knobs on "
            f"{backend.name}."
        )
    if request.synthetic is not None:
        found = tasks.shipped(backend, (request.synthetic,), request.activations)
    elif request.source is None:
        found = tasks.shipped(backend, activations=request.activations)
    else:
        module, _ = compiler.relax_module(open_packed(request.source), backend, request.activations)
        found = tasks.of_module(module, backend)
    found = [task for task in found if request.op in (None, task.op)]
    found.sort(key=lambda task: (task.shape.tokens, -task.share))  # what a token costs most first
    if not found:
        raise UnsupportedError(
            f"{request.source} has no operator with knobs: expected separable scales "
            f"({', '.join(known)})."
        )
    return found


class Tuning:
    """One request at work."""

    def __init__(self, request: TuneRequest, report: Progress) -> None:
        """Find the tasks; raises what `find_tasks` and `log.TuningLog` raise."""
        self._say = report
        self._request, self._begin = request, time.monotonic()
        minutes = request.minutes
        self._end = float("inf") if minutes is None else self._begin + minutes * 60
        self._backend = backends.load(request.preset)
        self._site = site_of(self._backend, request)
        self._tasks = find_tasks(request, self._backend)
        self._work = search.work_folder(request.preset, self._site.device)
        own = user_cache() / logs.NAME / request.preset
        self._output = Path(request.output) if request.output else own
        if (self._output / META).is_file():
            logs.TuningLog(self._output, request.preset)  # refuse what cannot be added to, now

    def run(self) -> Fields:
        """Search every task within its part of the time, write the log, return the report."""
        found: dict[str, Fields] = {}
        records: dict[str, list[Fields]] = {}
        with _alone(self._work):
            for number, task in enumerate(self._tasks):
                if found and time.monotonic() > self._end:
                    break
                result = self._search(task, number)
                found[task.name] = self._report(task, result)
                if result.records:
                    entries = [logs.entry(task.function, task.name, r) for r in result.records]
                    records[logs.key(task.function)] = entries
                # after every task: an interruption leaves what is finished
                self._write(records, list(found.values()), {})
            rows = self._crossover()
            self._write(records, list(found.values()), {"lookup_rows": rows} if rows else {})
        if not self._site.keeps:
            shutil.rmtree(self._work)
        return {
            "target": self._request.preset,
            "output": str(self._output),
            "measured": self._site.measured,
            "kept": self._site.keeps,
            "tasks": list(found.values()),
            "left": [task.name for task in self._tasks if task.name not in found],
            "lookup_rows": rows,
            "seconds": time.monotonic() - self._begin,
        }

    def _crossover(self) -> int | None:
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            try:
                place = Path(folder)
                return self._site.lookup_rows(
                    self._tasks, self._backend, self._output, place, self._end
                )
            except TrialError as error:
                log.warning("look-ups were not compared with prefill's product: it %s", error)
                return None

    def _search(self, task: Task, number: int) -> search.Found:
        """Search for one task in its part of the time: what is left, in equal parts."""

        def progress(done: int, trials: int) -> None:
            self._say(trials * number + done, trials * len(self._tasks), task.name)

        now = time.monotonic()
        until = now + (self._end - now) / (len(self._tasks) - number)
        one = search.Search(task, self._backend, self._work / task.name, self._site)
        return one.run(self._request.trials, until, progress)

    def _report(self, task: Task, found: search.Found) -> Fields:
        shape = task.shape
        return {
            "name": task.name,
            "op": task.op,
            "shape": [shape.outputs, shape.inputs],
            "bits": shape.bits,
            "tokens": shape.tokens,
            "before_us": round(found.before * 1e6, 3),
            "after_us": round(found.after * 1e6, 3),
            "trials": found.trials,
            "failed": found.failed,
            "weights": self._site.weights(task),
        }

    def _write(self, records: dict[str, list[Fields]], found: list[Fields], more: Fields) -> None:
        if not self._site.keeps:
            return
        run = {
            "shiftadd-tvm": __version__,
            "command": self._request.command,
            "date": datetime.now(UTC).date().isoformat(),
            "device": self._site.device,
            "measured": self._site.measured,
            "kept": self._site.keeps,
            "tasks": found,
        }
        logs.write(self._output, self._request.preset, records, more, run)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold `folder` against other tuning processes, which would disturb each other's times too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another process tunes in {folder} already; wait until it has ended."
            ) from None
        yield
