"""From a Relax module to an executable: one explicit, ordered list of passes, in three phases.

    scheduled   every operator (marked by `ops.OP`) is replaced by its schedule for the target
    planned     Relax becomes calls with planned memory
    lowered     calls become virtual-machine instructions

`dump` writes the module after each phase. An operator with a record in a tuning log is "tuned", one
without is "scheduled" by hand; one without a schedule file keeps its own loops: it is correct, counted
as "fallback", and named in the log. A module from an importer has operators that are not ours: they
are fused and scheduled by `imported_operators.py`, and counted as "imported".
"""

import functools
import importlib
import logging
import pkgutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.tirx import PrimFunc

from shiftadd_tvm import imported_operators
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.captured_steps import CaptureSteps
from shiftadd_tvm.fused_producers import FuseProducers
from shiftadd_tvm.ops import OP
from shiftadd_tvm.parameter_checks import DropParameterChecks
from shiftadd_tvm.shared_tensors import ShareTensors
from shiftadd_tvm.tuning.log import TuningLog

log = logging.getLogger(__name__)

IMPORTED = "shiftadd.imported"  # attribute of a module that holds operators which are not ours

PREPARE = (
    relax.transform.LegalizeOps,
    relax.transform.RewriteDataflowReshape,
)
PLAN = (
    relax.transform.ToNonDataflow,
    relax.transform.RemovePurityChecking,
    relax.transform.CallTIRRewrite,
    relax.transform.StaticPlanBlockMemory,
)
# No KillAfterLastUse: tensors are views of a few planned storages, and parameters are the host's own, so
# that its calls, a third of all those of a decode step, would free nothing before the function's end.
LOWER = (
    relax.transform.LowerAllocTensor,
    ShareTensors,
    relax.transform.CanonicalizeBindings,
    relax.transform.DeadCodeElimination,
    relax.transform.LowerRuntimeBuiltin,
    relax.transform.ComputePrimValue,
    relax.transform.VMShapeLower,
    DropParameterChecks,
    relax.transform.AttachGlobalSymbol,
)


@functools.cache
def schedules(family: str) -> dict[str, ModuleType]:
    """Return the schedule module of each operator that a target family schedules."""
    package = importlib.import_module(f"shiftadd_tvm.schedules.{family}")
    found: dict[str, ModuleType] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        if not name.startswith("_"):  # helpers shared by schedules
            module = importlib.import_module(f"{package.__name__}.{name}")
            found |= dict.fromkeys(module.OPS, module)
    return found


def apply_schedules(
    module: IRModule, backend: Backend, logs: Sequence[TuningLog] = ()
) -> tuple[IRModule, Counter[str]]:
    """Return the module with every operator scheduled, and how many kernels came from where."""
    functions, counts = {}, Counter(tuned=0, scheduled=0, fallback=0)
    known = schedules(backend.family)
    for variable, function in module.functions_items():
        if not isinstance(function, PrimFunc):
            functions[variable] = function
            continue
        op, source = (function.attrs or {}).get(OP), "fallback"
        if op in known:
            function, source = _scheduled(function, known[op], backend, logs)
        functions[variable] = function
        counts[source] += 1
        log.debug("%s (%s): %s", variable.name_hint, op, source)
    return IRModule(functions, attrs=module.attrs), counts


def _scheduled(
    function: PrimFunc, module: ModuleType, backend: Backend, logs: Sequence[TuningLog]
) -> tuple[PrimFunc, str]:
    """Return the function scheduled, and whether by a record ("tuned") or by hand ("scheduled")."""
    source, found = "tuned", None
    if defaults(module, backend):
        found = next(filter(None, (log.find(function, module, backend) for log in logs)), None)
    if found is None:
        source, schedule = "scheduled", Schedule(IRModule({"main": function}))
        written = module.schedule(schedule, backend, **defaults(module, backend))
        kept = dict(function.attrs)
        found = schedule.mod["main"] if written is None else written.with_attrs(kept)
    return found.with_attr("tirx.is_scheduled", True), source


def defaults(module: ModuleType, backend: Backend) -> dict[str, int]:
    """Return the untuned value of each knob that a schedule module declares in `KNOBS`.

    `UNTUNED` of the module says, by instruction set, which ones differ.
    """
    found = {name: knob.default for name, knob in getattr(module, "KNOBS", {}).items()}
    return found | getattr(module, "UNTUNED", {}).get(backend.isa, {})


def lower(
    module: IRModule,
    backend: Backend,
    dump: Path | None = None,
    logs: Sequence[TuningLog] = (),
) -> tuple[IRModule, Counter[str]]:
    """Return a Relax module as scheduled kernels and the calls between them, and kernel counts."""
    with tvm.target.Target(backend.target):
        _dump(module, dump, "0-built")
        prepare = tvm.transform.Sequential([step() for step in PREPARE])
        if backend.device:  # its schedules leave kernels that these passes cannot read
            module = tvm.transform.Sequential([prepare, FuseProducers(backend.shared)])(module)
        module, counts = apply_schedules(module, backend, logs)
        if IMPORTED in (module.attrs or {}):
            module, counts["imported"] = imported_operators.fuse_and_schedule(module, backend.lanes)
        _dump(module, dump, "1-scheduled")
        module = module if backend.device else prepare(module)
        plan = (*PLAN, CaptureSteps) if backend.device else PLAN
        module = tvm.transform.Sequential([step() for step in plan])(module)
        _dump(module, dump, "2-planned")
        module = tvm.transform.Sequential([step() for step in LOWER])(module)
        _dump(module, dump, "3-lowered")
        return module, counts


def build(
    module: IRModule,
    backend: Backend,
    dump: Path | None = None,
    logs: Sequence[TuningLog] = (),
) -> tuple[relax.VMExecutable, Counter[str]]:
    """Return the executable and the kernel counts of a Relax module for `backend`."""
    module, counts = lower(module, backend, dump, logs)
    return generate(module, backend), counts


def generate(module: IRModule, backend: Backend) -> relax.VMExecutable:
    """Return the executable of a module that `lower` made for `backend`."""
    finished = tvm.transform.Sequential([])  # nothing is left for TVM's own pipeline
    with tvm.target.Target(backend.target) as target:
        return relax.build(module, target, relax_pipeline=finished)


def _dump(module: IRModule, folder: Path | None, phase: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{phase}.py").write_text(module.script(), encoding="utf-8")
