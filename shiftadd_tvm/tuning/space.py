"""A schedule function as a search space of MetaSchedule.

The space samples every knob of a schedule module and writes the samples on the block `sums`; a
postprocessor takes them off again and calls the very function that schedules untuned code. So one
function gives the default and every candidate, and a record, which holds both halves, replays as what
that function did. (`tensorize` records a name, not the random variable: hence the second half.)
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tvm
from tvm.ir import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.meta_schedule.postproc import PyPostproc
from tvm.s_tir.schedule import ScheduleError
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend

BLOCK = "sums"  # which every schedule with knobs has
PREFIX = "shiftadd.knob."
WARMUP = 12  # candidates before the cost model is asked

Trace = Any


def workload(function: PrimFunc) -> IRModule:
    """Return the module by which records know a function: its name, which varies, left out."""
    return IRModule({"main": function.with_attr("global_symbol", "main")})


def knobs(trace: Trace, module: ModuleType) -> dict[str, int]:
    """Return the knob values that a trace decided on."""
    sampled = _samples(trace)
    values = [int(inst.attrs[0][int(trace.decisions[inst])]) for inst in sampled]
    return dict(zip(module.KNOBS, values, strict=True))


def drew_from(record: Sequence[Any], module: ModuleType) -> bool:
    """Tell whether a record in JSON is of this space: other knobs, or other values, have been others'."""
    (instructions, _decisions), *_ = record
    drawn = [i[2][0] for i in instructions if i[0] == "SampleCategorical"]
    named = [i[2][0] for i in instructions if i[0] == "Annotate" and i[2][0].startswith(PREFIX)]
    knobs = module.KNOBS.items()
    return named == [PREFIX + name for name, _ in knobs] and drawn == [
        list(knob.candidates) for _, knob in knobs
    ]


def _samples(trace: Trace) -> list[Any]:
    return [inst for inst in trace.insts if inst.kind.name == "SampleCategorical"]


def _sample(module: ModuleType, sch: Schedule) -> list[Schedule]:
    block = sch.get_sblock(BLOCK)
    for name, knob in module.KNOBS.items():
        count = len(knob.candidates)
        chosen = sch.sample_categorical(list(knob.candidates), [1 / count] * count)
        sch.annotate(block, PREFIX + name, chosen)
    return [sch]


def points(module: ModuleType) -> Iterator[dict[str, int]]:
    """Yield the values of every point of a space, those near the untuned one first."""
    ways = [range(len(knob.candidates)) for knob in module.KNOBS.values()]
    start = [knob.candidates.index(knob.default) for knob in module.KNOBS.values()]
    steps = lambda point: sum(abs(a - b) for a, b in zip(point, start, strict=True))
    for point in sorted(itertools.product(*ways), key=steps):
        values = zip(module.KNOBS.items(), point, strict=True)
        yield {name: knob.candidates[index] for (name, knob), index in values}


def _taken(sch: Schedule, module: ModuleType) -> dict[str, int]:
    """Take the knob values off the block and return them."""
    block = sch.get_sblock(BLOCK)
    written = sch.get(block).annotations
    values = {name: int(written[PREFIX + name]) for name in module.KNOBS}
    for name in values:
        sch.unannotate(block, PREFIX + name)
    return values


def realized(mod: IRModule, module: ModuleType, backend: Backend) -> IRModule:
    """Return what is compiled of a candidate's module, or of a replayed record's.

    A GPU's schedule writes the function whole, which is no step that MetaSchedule could record: there
    the record ends with the knobs on the block, and the schedule is called anew.
    """
    if not backend.device:
        return mod
    sch = Schedule(mod)
    written = module.schedule(sch, backend, **_taken(sch, module))
    return IRModule({"main": written.with_attrs(dict(mod["main"].attrs))})


@derived_object
class _Apply(PyPostproc):
    """Calls the schedule function with the knob values that stand on the block."""

    def __init__(self, module: ModuleType, backend: Backend) -> None:
        super().__init__()
        self._module, self._backend = module, backend

    def _initialize_with_tune_context(self, context: Any) -> None:
        """Nothing depends on the task."""

    def apply(self, sch: Schedule) -> bool:
        if self._backend.device:
            return True  # `realized` does the rest
        try:
            self._module.schedule(sch, self._backend, **_taken(sch, self._module))
        except ScheduleError:
            return False  # these values do not go together for this function
        return True

    def clone(self) -> "_Apply":
        return _Apply(self._module, self._backend)


@derived_object
class _Mutate(PyMutator):
    """Changes one knob; TVM's own mutators leave a free choice alone."""

    def __init__(self) -> None:
        super().__init__()
        self._random = random.Random(0)

    def _initialize_with_tune_context(self, context: Any) -> None:
        """Nothing depends on the task."""

    def apply(self, trace: Trace, _seed: int) -> Trace | None:
        instruction = self._random.choice(_samples(trace))
        others = set(range(len(instruction.attrs[0]))) - {int(trace.decisions[instruction])}
        if not others:
            return None
        chosen = self._random.choice(sorted(others))
        return trace.with_decision(instruction, chosen, remove_postproc=True)

    def clone(self) -> "_Mutate":
        return _Mutate()


@derived_object
class _Features(PyFeatureExtractor):
    """The knobs themselves: TVM's features of loops and stores see no prefetch distance."""

    def __init__(self) -> None:
        super().__init__()

    def extract_from(self, context: Any, candidates: list[Any]) -> list[Any]:
        return [tvm.runtime.tensor(_features(candidate.sch.trace)) for candidate in candidates]


def _features(trace: Trace) -> np.ndarray:
    values = [int(inst.attrs[0][int(trace.decisions[inst])]) for inst in _samples(trace)]
    return np.log2(1 + np.array([values], np.float64))


def generator(module: ModuleType, backend: Backend) -> Any:
    """Return the space of a schedule module, as MetaSchedule's space generator."""
    return ms.space_generator.ScheduleFn(
        lambda sch: _sample(module, sch),
        sch_rules=[],
        postprocs=[_Apply(module, backend)],
        mutator_probs={_Mutate(): 1.0},
    )


def cost_model() -> Any:
    """Return an untrained model that ranks candidates by their knobs."""
    return ms.cost_model.XGBModel(
        extractor=_Features(), num_warmup_samples=WARMUP, num_tuning_cores=1
    )


def candidate(
    mod: IRModule, module: ModuleType, backend: Backend, values: dict[str, int]
) -> Schedule:
    """Return the candidate of a workload that has these knob values; `ScheduleError` if none."""
    sampled = Schedule(mod)
    _sample(module, sampled)
    trace = sampled.trace
    for instruction, (name, knob) in zip(_samples(trace), module.KNOBS.items(), strict=True):
        trace = trace.with_decision(instruction, knob.candidates.index(values[name]), True)
    sch = Schedule(mod)
    trace.apply_to_schedule(sch, remove_postproc=True)
    sch.enter_postproc()
    if not _Apply(module, backend).apply(sch):
        raise ScheduleError(f"{values} do not go together")
    return sch
