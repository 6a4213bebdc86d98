"""How long `quantize` takes, about: the work of its stages, measured on a small model on two cores."""

from shiftadd_tvm import cpu
from shiftadd_tvm.effort import Effort
from shiftadd_tvm.settings import QuantizeSettings

# What `stage_work` was measured on: the weights of SmolLM2-135M's linears, and processors.
MEASURED_WEIGHTS, MEASURED_CORES = 106_168_320, 2
OWN_RATE = 200  # tokens a second that it writes itself
DATA_FREE_RATE = 5e6  # weights a second, by one core: 5.4 on examples/big_model.py, all included


def stage_work(settings: QuantizeSettings) -> dict[str, float]:
    """Return the stages and their relative work, about seconds on what they were measured on."""
    if not settings.calibrated:
        return {"code": 1.0, "end": 0.0}
    amounts = settings.amounts
    return {
        "measure": settings.tokens / 570 + settings.own_tokens / OWN_RATE,
        "allocate": _comparison(amounts) if settings.measures_losses else 0.0,
        "code": 20.0 * (amounts.rounds + 1),
        "tune": 2.1 * settings.steps,
        "end": 0.0,
    }


def _comparison(amounts: Effort) -> float:
    """Return the work of measuring what each linear alone costs."""
    return (8.0 if amounts.one_width else 20.0) + amounts.sensitivity_tokens / 6


def seconds(settings: QuantizeSettings, weights: int) -> float:
    """Return about how long so many weights of linears take on this machine, in seconds.

    It knows the number of cores, not their speed: the plan that `quantize` makes while it runs does.
    """
    if not settings.calibrated:
        return weights / DATA_FREE_RATE
    cores = min(cpu.cores(), 2 * MEASURED_CORES)  # more help little
    work = sum(stage_work(settings).values())
    return work * weights / MEASURED_WEIGHTS * MEASURED_CORES / cores
