"""The device on which torch runs a model for calibration: is it there, and has it memory enough?"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.settings import QuantizeSettings

PROCESSOR = "cpu"
_GPU = re.compile(r"cuda(:(?P<index>\d+))?")


def check(name: str, settings: QuantizeSettings) -> None:
    """Raise `UsageError` unless torch can compute on the device called `name`, and has work for it."""
    if name == PROCESSOR:
        return
    found = _GPU.fullmatch(name)
    if found is None:
        raise UsageError(f"--device is {name!r}, expected cpu, cuda or cuda:N.")
    if not settings.calibrated:
        raise UsageError(
            f"--device is {name}, and --method {settings.method} runs no model; leave --device out."
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(found["index"] or 0) >= count:
        raise UsageError(
            f"--device is {name}, and torch {torch.__version__} finds {count} CUDA devices here; install "
            "a driver and a torch that is built for CUDA, or leave --device out."
        )


@contextmanager
def enough_memory(name: str) -> Iterator[None]:
    """Say in a sentence where the memory of the device called `name` does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UsageError(
            f"{name} has too little memory free to run this model for calibration; free some, or give "
            "the same command without --device, which goes on from here."
        ) from None
