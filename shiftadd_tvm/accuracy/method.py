"""What a baseline is: a named function from a linear and its inputs to dequantized weights."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from shiftadd_tvm.accuracy import methods
from shiftadd_tvm.errors import UsageError


@dataclass(frozen=True)
class Dequantized:
    """A linear as its stored form gives it back."""

    weights: Tensor  # float32 (N, K)
    bits: float  # stored bits of a weight: codes and all scales


Quantize = Callable[[Tensor, Tensor, int], Dequantized]


@dataclass(frozen=True)
class Method:
    """One row of the table for each of its `widths`.

    `quantize` gets weights, float32 (N, K), the second moments H = E[x x'] of their inputs, float32
    (K, K), and the bits of a code. It leaves both as they are and gives the same for the same.
    """

    name: str
    quantize: Quantize
    widths: tuple[int, ...]
    multiplication_free: bool  # what it stores can run without a multiply by a weight or scale
    remark: str  # why so, and what differs from the publication


def find() -> dict[str, Method]:
    """Return every method by its name, in the order of the files' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(methods.__path__))
    modules = [importlib.import_module(f"{methods.__name__}.{name}") for name in names]
    return {method.name: method for module in modules for method in module.METHODS}


def choose(names: list[str]) -> list[Method]:
    """Return the methods of these names; raises `UsageError` for an unknown one."""
    known = find()
    for name in names:
        if name not in known:
            raise UsageError(f"There is no method {name!r}; expected one of {', '.join(known)}.")
    return [known[name] for name in names]
