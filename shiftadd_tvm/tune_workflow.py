"""The verb `tune`, across the rooms: plan it, carry it out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftadd_tvm import backend as backends
from shiftadd_tvm import cpu, tuner, workflow
from shiftadd_tvm.errors import OutputError, UsageError
from shiftadd_tvm.files import refuse_existing
from shiftadd_tvm.tuner import TuneReport, TuneRequest
from shiftadd_tvm.workflow import QuantizePlan

Progress = Callable[[int, int, str], None]  # trials done, trials in all, the task


@dataclass(frozen=True)
class TunePlan:
    """What `tune` would do: with `quantize`, the packed model is made first."""

    request: TuneRequest
    quantize: QuantizePlan | None


def plan_tune(
    source: str | Path | None = None,
    output: str | Path | None = None,
    *,
    target: str | None = None,
    bits: float | None = None,
    config: str | Path | None = None,
    threads: int | None = None,
    activations: str = "",
    stage: str | None = None,
    **budget: Any,
) -> TunePlan:
    """Check everything that can be checked before the work, and return what `tune` would do.

    `budget` is what else `TuneRequest` has, such as `trials` and `minutes`.
    """
    backend = backends.load(target) if target else backends.detect()
    first, measuring = None, stage in tuner.STAGES[1:]
    if source is not None and not measuring:
        made = workflow.plan_source(source, None, backend, bits, config)
        source, first = str(made.packed), made.quantize
    elif bits is not None or config is not None:
        raise UsageError("--bits and --config belong to a SRC, which is missing; give one.")
    if stage == tuner.STAGES[0]:
        output = output or f"candidates-{backend.name}"
        if Path(output).exists():  # times may lie beside the candidates that are there
            raise OutputError(f"{output} already exists; choose another -o, or remove it.")
    elif output is not None:
        refuse_existing(Path(output), tuner.META, force=True)
    place = None if output is None else str(output)
    workers = threads or cpu.cores()
    if source is not None and budget.get("synthetic"):
        raise UsageError("Both SRC and --synthetic say what to tune; give one of them.")
    request = TuneRequest(
        backend.name,
        None if source is None else str(source),
        threads=workers,
        output=place,
        stage=stage,
        activations=backend.chosen(activations),
        **budget,
    )
    tuner.check(backend, request)
    return TunePlan(request, first)


def run_tune(plan: TunePlan, *, progress: Progress = lambda done, total, what: None) -> TuneReport:
    """Carry out a plan whose packed model, if it has one, exists by now."""
    return tuner.tune(plan.request, progress)


def tune(
    source: str | Path | None = None, output: str | Path | None = None, **options: Any
) -> TuneReport:
    """Search the fastest schedules for this machine; `options` are those of `plan_tune`."""
    plan = plan_tune(source, output, **options)
    if plan.quantize is not None:
        workflow.run_quantize(plan.quantize)
    return run_tune(plan)
