"""An estimate of a token's arithmetic energy, from counts and published constants (45 nm CMOS).

ShiftAddLLM publishes two sets that disagree: its Table 1, and the constants in its code. Both are
used, each under its name. This is a model of arithmetic units and of reading weights, no measurement:
caches, registers, control and all that is not counted cost nothing in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shiftadd_tvm.operation_counts import LEFT, Count

MEMORY = 200 / 16  # pJ for each bit read from DRAM, in ShiftAddLLM's code (200 pJ for 16 bits)


@dataclass(frozen=True)
class Constants:
    """Picojoules of one operation each; `whole_add` of 32-bit integers, `lookup` of an 8-bit key."""

    name: str
    source: str
    multiply32: float
    add32: float
    multiply16: float
    add16: float
    whole_add: float
    shift: float
    lookup: float


SETS = (
    Constants(
        "paper",
        "ShiftAddLLM, Table 1 (shift and whole addition: INT32)",
        multiply32=3.7,
        add32=1.1,
        multiply16=0.9,
        add16=0.4,
        whole_add=0.1,
        shift=0.13,
        lookup=0.37,
    ),
    Constants(
        "code",
        "ShiftAddLLM's code, energy/hw_utils.py (it has no integers: a whole addition is taken as "
        "one of FP16; shift: FP32)",
        multiply32=3.7,
        add32=0.9,
        multiply16=1.1,
        add16=0.4,
        whole_add=0.4,
        shift=0.1,
        lookup=0.37,
    ),
)


@dataclass(frozen=True)
class Estimate:
    """Picojoules a token: linears, what is left, and what is left if it were FP16; then FP16."""

    linears: float
    left: dict[str, float]  # part -> float32, as it is built
    left16: dict[str, float]  # the same operations in FP16
    baseline: float  # the linears as FP16 multiply-accumulates

    def built(self) -> float:
        """Return all that a token costs, what is left in float32."""
        return self.linears + sum(self.left.values())

    def mixed(self) -> float:
        """Return what it would cost with all that is left in FP16."""
        return self.linears + sum(self.left16.values())

    def dense(self) -> float:
        """Return what the whole model costs in FP16."""
        return self.baseline + sum(self.left16.values())


def estimate(constants: Constants, parts: Mapping[str, Count], baseline: Count) -> Estimate:
    """Return the estimate for counts by part and those of the same linears, dense."""
    linears = sum(_wide(constants, count) for part, count in parts.items() if part not in LEFT)
    left = {part: _wide(constants, parts[part]) for part in LEFT}
    left16 = {part: _narrow(constants, parts[part]) for part in LEFT}
    return Estimate(linears, left, left16, _narrow(constants, baseline))


def _wide(constants: Constants, count: Count) -> float:
    """Return picojoules with all floats in float32."""
    floats = count.multiplies * constants.multiply32 + count.adds * constants.add32
    whole = count.whole_adds * constants.whole_add + count.shifts * constants.shift
    return floats + whole + count.lookups * constants.lookup


def _narrow(constants: Constants, count: Count) -> float:
    """Return picojoules of multiplications and additions in FP16."""
    return count.multiplies * constants.multiply16 + count.adds * constants.add16


def reading(nbytes: int) -> float:
    """Return the picojoules of reading so many bytes of weights from DRAM."""
    return nbytes * 8 * MEMORY
