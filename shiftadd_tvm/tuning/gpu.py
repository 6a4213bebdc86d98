"""Tuning kernels of a GPU: build candidates, measure them, commit what was found; here or in two places.

Building takes no GPU. Measuring is the candidates' own program, which needs a driver and a bare Python.
Committing writes the best ones into a log, as records of MetaSchedule, like those of any other target.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvm.s_tir.meta_schedule.database import TuningRecord, Workload

from shiftadd_tvm import __version__, cpu, pipeline
from shiftadd_tvm import backend as backends
from shiftadd_tvm.cuda import measuring
from shiftadd_tvm.errors import BadFileError, GateError, UnsupportedError, UsageError
from shiftadd_tvm.files import staged, user_cache
from shiftadd_tvm.tuner import CANDIDATES, TuneRequest
from shiftadd_tvm.tuning import candidates, space
from shiftadd_tvm.tuning import log as logs
from shiftadd_tvm.tuning.measure import COLD
from shiftadd_tvm.tuning.session import find_tasks
from shiftadd_tvm.tuning.word_shapes import WordShape

KEPT = 3  # records of a task in a log

Fields = dict[str, Any]
Progress = Callable[[int, int, str], None]


def run(request: TuneRequest, progress: Progress) -> Fields:
    """Carry out a request, or one stage of it; return the fields of a `TuneReport`."""
    began = time.monotonic()
    if request.stage:
        fields = _stage(request, progress)
    else:
        fields = _here(request, progress)
    return {"left": [], "lookup_rows": None, "kept": True, **fields, "seconds": time.monotonic() - began}


def _stage(request: TuneRequest, progress: Progress) -> Fields:
    if request.stage == "build":
        return _build(request, Path(str(request.output)), progress)
    folder = Path(str(request.source))
    if request.stage == "measure":
        return _measure(folder)
    return _commit(folder, request, "two-stage")


def _here(request: TuneRequest, progress: Progress) -> Fields:
    """All three stages, on the machine with the GPU."""
    with tempfile.TemporaryDirectory(prefix="shiftadd-tune-") as name:
        folder = Path(name) / "candidates"
        _build(request, folder, progress)
        _measure(folder)
        return _commit(folder, request, "local")


def _build(request: TuneRequest, output: Path, progress: Progress) -> Fields:
    backend = backends.load(request.preset)
    tasks = find_tasks(request, backend)
    with tempfile.TemporaryDirectory() as scratch, staged(output, CANDIDATES) as folder:
        made = candidates.build(
            *(folder / CANDIDATES, tasks, backend, request.trials),
            *(Path(scratch), cpu.cores(), progress),
        )
    found = [{**_task(fields), "candidates": len(fields["candidates"])} for fields in made]
    return _fields(backend.name, output, "not yet", found)


def _task(fields: Fields) -> Fields:
    shape = WordShape(**fields["shape"])
    return {
        **{"name": fields["name"], "op": shape.op, "shape": [shape.outputs, shape.inputs]},
        **{"bits": shape.bits, "tokens": shape.tokens},
    }


def _fields(preset: str, output: Path, measured: str, tasks: list[Fields]) -> Fields:
    return {"target": preset, "output": str(output), "measured": measured, "tasks": tasks}


def _measure(folder: Path) -> Fields:
    """Run the candidates' program; its results are in the folder. Raises `UnsupportedError`."""
    made, digest = _made(folder)
    command = [sys.executable, str(folder / CANDIDATES)]
    child = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if child.returncode:
        said = child.stderr.strip().splitlines() or [f"status {child.returncode}"]
        raise UnsupportedError(f"Candidates cannot be measured here: {said[-1]}")
    _, found = _measured(folder, made, digest)
    return _fields(made["preset"], folder / measuring.TIMES, "two-stage", found)


def _made(folder: Path) -> tuple[Fields, str]:
    """Return what is in the candidates' file, and its hash."""
    path = folder / CANDIDATES
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no {CANDIDATES}; give the folder that shiftadd-tvm tune --stage build wrote."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            made = json.loads(archive.read(measuring.TASKS))
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise BadFileError(f"{path} is damaged; build it anew.") from None
    if made["versions"] != logs.versions():
        raise UnsupportedError(
            f"{path} was built with TVM {made['versions'].get(logs.LIBRARY)}, this is "
            f"{logs.versions()[logs.LIBRARY]}; build it anew."
        )
    return made, hashlib.sha256(path.read_bytes()).hexdigest()


def _measured(folder: Path, made: Fields, digest: str) -> tuple[Fields, list[Fields]]:
    """Return all that was measured of the candidates `_made`, and the report on each task.

    Raises `BadFileError` for times of other candidates, `GateError` where an untuned kernel is wrong.
    """
    path = folder / measuring.TIMES
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no {measuring.TIMES}; run python3 {CANDIDATES} on the machine with the GPU."
        )
    try:
        times = json.loads(path.read_text("utf-8"))
        if times["candidates"] != digest:
            raise BadFileError(f"{path} has times of other candidates; measure these.")
        found = [
            {**_task(fields), **_times(fields, times["tasks"][fields["name"]])}
            for fields in made["tasks"]
            if fields["name"] in times["tasks"]
        ]
    except (ValueError, KeyError, TypeError):
        raise BadFileError(f"{path} is damaged; measure again.") from None
    return times, found


def _times(fields: Fields, results: list[Fields]) -> Fields:
    untuned, *_ = results
    if untuned["failed"]:
        raise GateError(
            f"The untuned kernel of {fields['name']} failed on the GPU: it {untuned['failed']}; please "
            "report it."
        )
    right = [float(result["seconds"]) for result in results if not result["failed"]]
    return {
        "before_us": round(right[0] * 1e6, 3),
        "after_us": round(min(right) * 1e6, 3),
        "trials": len(results),
        "failed": len(results) - len(right),
        "weights": "cold" if fields["cold"] == COLD else "cached",
    }


def _commit(folder: Path, request: TuneRequest, measured: str) -> Fields:
    """Write the best candidates of each task into a log."""
    made, digest = _made(folder)
    times, found = _measured(folder, made, digest)
    preset = made["preset"]
    output = Path(request.output) if request.output else user_cache() / logs.NAME / preset
    records = {}
    for fields in made["tasks"]:
        if fields["name"] in times["tasks"]:
            entries = _records(fields, times["tasks"][fields["name"]], preset)
            records[entries[0]["workload"]] = entries
    run = {
        "shiftadd-tvm": __version__,
        "command": request.command,
        "date": times["date"],
        "device": times["device"],
        "measured": measured,
        "kept": True,
        "tasks": found,
    }
    logs.write(output, preset, records, {}, run)
    return _fields(preset, output, measured, found)


def _records(fields: Fields, results: list[Fields], preset: str) -> list[Fields]:
    """Return the fastest candidates of a task as a log holds them."""
    backend, shape = backends.load(preset), WordShape(**fields["shape"])
    module = pipeline.schedules(backend.family)[shape.op]
    function = shape.function(backend.rows)
    workload = Workload(space.workload(function))
    right = sorted((r for r in results if not r["failed"]), key=lambda r: float(r["seconds"]))
    entries = []
    for result in right[:KEPT]:
        sch = space.candidate(workload.mod, module, backend, result["values"])
        record = TuningRecord(sch.trace, workload, [float(result["seconds"])])
        entries.append(logs.entry(function, fields["name"], record))
    return entries
