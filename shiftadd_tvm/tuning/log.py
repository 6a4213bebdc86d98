"""A tuning log: the best records of one target preset, and how they came about.

    records.json   an array, one line a record: {"workload", "task", "record"}; best first within a
                   workload. "record" is MetaSchedule's own, "workload" the structural hash by which
                   its database knows a function. The function itself, 350 kB of JSON, is left out:
                   whoever looks a record up has it.
    meta.json      versions, the preset, `lookup_rows`, and the runs: device, command, tasks

Compiling looks every function up in `--tuning-log`, the user's cache and what is shipped, in this
order. A record is a trace for one TVM version and names intrinsics: a log of another version is refused
(or passed over, where nobody asked for it), a record with an unknown intrinsic is passed over.
"""

import importlib.metadata
import importlib.resources
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import tvm_ffi
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.database import TuningRecord, Workload
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.errors import BadFileError, ShiftAddError, UnsupportedError, UsageError
from shiftadd_tvm.files import canonical_json, staged, user_cache
from shiftadd_tvm.ops import OP
from shiftadd_tvm.tuner import META
from shiftadd_tvm.tuning.space import realized, workload

RECORDS = "records.json"
SCHEMA = 1
LIBRARY = "apache-tvm"
NAME = "tuning_logs"  # the package, and the folder in the user's cache

log = logging.getLogger(__name__)

Fields = dict[str, Any]


def versions() -> dict[str, str]:
    """Return the versions that decide whether a record can be replayed."""
    return {name: importlib.metadata.version(name) for name in (LIBRARY, "apache-tvm-ffi")}


def key(function: PrimFunc) -> str:
    """Return the hash by which records know a function."""
    return str(tvm_ffi.structural_hash(workload(function)))


class TuningLog:
    """One folder with records, read and checked."""

    def __init__(self, folder: Path, preset: str) -> None:
        """Read the log of `preset`; raises `BadFileError`, `UnsupportedError` or `UsageError`."""
        self.folder = folder
        self.meta = _read(folder / META, dict)
        self._check(preset)
        self.records: dict[str, list[Fields]] = {}
        for entry in _read(folder / RECORDS, list):
            if not isinstance(entry, dict) or {"workload", "task", "record"} - set(entry):
                raise BadFileError(
                    f"{folder / RECORDS} has an entry without workload, task or record; make it "
                    "anew (shiftadd-tvm tune)."
                )
            self.records.setdefault(str(entry["workload"]), []).append(entry)

    def _check(self, preset: str) -> None:
        found = self.meta.get("versions")
        version = found.get(LIBRARY) if isinstance(found, dict) else None
        if version != versions()[LIBRARY]:
            raise UnsupportedError(
                f"{self.folder} was tuned with TVM {version}, this is TVM {versions()[LIBRARY]}: "
                "its records cannot be replayed; tune again (shiftadd-tvm tune), or install that "
                "version."
            )
        if self.meta.get("preset") != preset:
            raise UsageError(
                f"{self.folder} was tuned for {self.meta.get('preset')}, not for {preset}; give the "
                "log of this target."
            )

    def find(self, function: PrimFunc, module: ModuleType, backend: Backend) -> PrimFunc | None:
        """Return `function` scheduled for `backend` by its best record that can be replayed, or None.

        `module` schedules the function's operator, and knows its intrinsics.
        """
        for entry in self.records.get(key(function), ()):
            unknown = [name for name in intrinsics(entry["record"]) if not module.restore(name)]
            if not unknown:
                return realized(_replay(function, entry["record"]), module, backend)["main"]
            log.warning(
                "a record of %s in %s is passed over: it uses %s, which this version does not have",
                *(entry["task"], self.folder, unknown[0]),
            )
        return None


def intrinsics(record: Sequence[Any]) -> Iterator[str]:
    """Yield the names of the intrinsics that a record in JSON puts under its function."""
    (instructions, _decisions), *_ = record
    for kind, _inputs, attributes, _outputs in instructions:
        if kind == "Tensorize":
            yield attributes[0]


def _replay(function: PrimFunc, record: Sequence[Any]) -> IRModule:
    trace = TuningRecord.from_json(record, Workload(workload(function))).trace
    schedule = Schedule(IRModule({"main": function}))
    trace.apply_to_schedule(schedule, remove_postproc=False)
    return schedule.mod


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent} holds no tuning log: {path.name} is missing; give a folder that "
            "shiftadd-tvm tune wrote."
        ) from None
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise BadFileError(
            f"{path} is no JSON ({error}); make it anew (shiftadd-tvm tune)."
        ) from None
    if not isinstance(value, kind):
        raise BadFileError(f"{path} holds no {kind.__name__}; make it anew (shiftadd-tvm tune).")
    return value


def places(preset: str) -> list[Path]:
    """Return where logs of a preset are looked for when none is named: own ones, shipped ones."""
    shipped = Path(str(importlib.resources.files(f"shiftadd_tvm.{NAME}"))) / preset
    return [user_cache() / NAME / preset, shipped]


def open_logs(preset: str, named: Path | None = None) -> list[TuningLog]:
    """Return the logs of a preset, the first with a record wins.

    `named` is a log, or a folder of logs by preset; what is wrong with it is raised. Where nobody
    named a log, a bad one is passed over with a warning.
    """
    logs = []
    if named is not None:
        inside = named / preset
        logs.append(TuningLog(inside if (inside / META).is_file() else named, preset))
    for folder in places(preset):
        if (folder / META).is_file():
            try:
                logs.append(TuningLog(folder, preset))
            except ShiftAddError as error:
                log.warning("%s The log is passed over.", error)
    return logs


def lookup_rows(logs: Sequence[TuningLog]) -> int | None:
    """Return up to how many tokens look-ups were measured to beat prefill; None: not measured."""
    measured = [log.meta["lookup_rows"] for log in logs if log.meta.get("lookup_rows")]
    return int(measured[0]) if measured else None


def write(
    folder: Path, preset: str, records: Mapping[str, Sequence[Fields]], meta: Fields, run: Fields
) -> None:
    """Write `records` by workload and the `run` that found them, and keep what a log there has.

    `meta` holds what this run says of the whole log. Records of other workloads stay, and so does
    what earlier runs say of them; a log of another version is not replaced.
    """
    kept: dict[str, Sequence[Fields]] = {}
    runs: list[Fields] = []
    if (folder / META).is_file():
        before = TuningLog(folder, preset)
        meta = {**before.meta, **meta}
        kept = {k: v for k, v in before.records.items() if k not in records}
        runs = _other_runs(before.meta.get("runs", []), {t["name"] for t in run["tasks"]})
    meta = {
        **meta,
        "schema": SCHEMA,
        "versions": versions(),
        "preset": preset,
        "runs": [*runs, run],
    }
    entries = [entry for found in (*kept.values(), *records.values()) for entry in found]
    entries.sort(key=lambda entry: (entry["task"], entry["workload"]))  # stable: best stays first
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    with staged(folder, META, force=True) as staging:
        (staging / RECORDS).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        (staging / META).write_bytes(canonical_json(meta))


def _other_runs(runs: Sequence[Fields], tuned: set[str]) -> list[Fields]:
    """Return earlier runs without the tasks that were tuned again."""
    left = [{**run, "tasks": [t for t in run["tasks"] if t["name"] not in tuned]} for run in runs]
    return [run for run in left if run["tasks"]]


def entry(function: PrimFunc, task: str, record: TuningRecord) -> Fields:
    """Return a record as a log holds it."""
    return {
        "workload": key(function),
        "task": task,
        "op": str(function.attrs[OP]),
        "record": _plain(record),
    }


def _plain(record: TuningRecord) -> Any:
    return json.loads(json.dumps(record.as_json()))
