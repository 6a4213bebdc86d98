"""What a report shows, as data: its layers, its facts, its counts; `report.py` gathers it."""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from shiftadd_tvm import energy, operation_counts
from shiftadd_tvm.energy import Estimate
from shiftadd_tvm.lookup_counts import Reader
from shiftadd_tvm.lookup_counts import linears as count_linears
from shiftadd_tvm.operation_counts import Count, Parts, Rest

POSITIONS = 512  # that the counted token attends to, where the model has so many
NO_TOKENS = (
    "Operations are not counted: how often a graph's linears compute depends on what it is called with."
)
_IN_BLOCK = re.compile(r"^.*?\.(\d+)\.(.+)$")

Fields = dict[str, object]


@dataclass(frozen=True)
class Layer:
    """One stored matrix of planes: a linear, or in an artifact linears one below the other.

    Errors are relative and squared; `losses` are the expected losses by bits, as far as known.
    """

    name: str
    shape: tuple[int, int]  # outputs, inputs
    bits: int
    nbytes: int  # what linears share counts for the first of them
    weight_error: float | None = None
    output_error: float | None = None
    losses: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def block(self) -> int:
        """The number of its block; 0 for a name that has none."""
        found = _IN_BLOCK.match(self.name)
        return int(found[1]) if found else 0

    @property
    def kind(self) -> str:
        """Its path inside the block."""
        found = _IN_BLOCK.match(self.name)
        return found[2] if found else self.name

    @property
    def loss(self) -> float | None:
        """The expected loss at its bits."""
        found = self.losses.get(self.bits, math.nan)
        return None if math.isnan(found) else found


@dataclass(frozen=True)
class Work:
    """What one decoded token costs: operations by part, and bytes of weights read."""

    positions: int
    parts: Parts
    baseline: Count  # of the same linears, dense
    read_bytes: int
    baseline_bytes: int  # of the same weights in FP16

    def estimates(self) -> dict[str, Estimate]:
        """Return the energy estimate by the name of its constants."""
        return {s.name: energy.estimate(s, self.parts, self.baseline) for s in energy.SETS}

    def to_dict(self) -> Fields:
        """Return all as JSON types."""
        estimates = {
            name: {
                "built": e.built(),
                "left_in_fp16": e.mixed(),
                "fp16": e.dense(),
                "linears": e.linears,
                "linears_fp16": e.baseline,
            }
            for name, e in self.estimates().items()
        }
        return {
            "positions": self.positions,
            "parts": {name: dataclasses.asdict(count) for name, count in self.parts.items()},
            "fp16_linears": dataclasses.asdict(self.baseline),
            "read_bytes": self.read_bytes,
            "fp16_read_bytes": self.baseline_bytes,
            "energy_picojoules": estimates,
        }


@dataclass(frozen=True)
class Report:
    """All that a report shows; `missing` says in sentences what it cannot show, and why."""

    kind: str  # packed | artifact
    title: str
    facts: dict[str, str]
    layers: list[Layer]
    nominal_bits: float
    effective_bits: float
    linear_bytes: int
    work: Work | None
    missing: list[str]

    def share(self, layer: Layer) -> float | None:
        """Return a layer's share of the expected loss of all, where every loss is known."""
        losses = [one.loss for one in self.layers]
        known = [loss for loss in losses if loss is not None]
        if len(known) < len(losses) or not sum(known) or layer.loss is None:
            return None
        return layer.loss / sum(known)

    def to_dict(self) -> Fields:
        """Return the report as JSON types."""
        layers = [
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "bits": layer.bits,
                "weight_error": layer.weight_error,
                "output_error": layer.output_error,
                "bytes": layer.nbytes,
                "loss_share": self.share(layer),
                "expected_loss": {str(bits): loss for bits, loss in layer.losses.items()},
            }
            for layer in self.layers
        ]
        return {
            "kind": self.kind,
            "model": self.title,
            "facts": self.facts,
            "nominal_bits": self.nominal_bits,
            "effective_bits": self.effective_bits,
            "linear_bytes": self.linear_bytes,
            "layers": layers,
            "operations": None if self.work is None else self.work.to_dict(),
            "missing": self.missing,
        }


def work(
    readers: Sequence[Reader], rest: Rest, positions: int, read_bytes: int, baseline_bytes: int
) -> Work:
    """Return what a token costs that attends to at most `positions`."""
    attended = min(POSITIONS, positions)
    parts = [count_linears(reader) for reader in readers]
    dense = (operation_counts.dense(m.outputs, r.inputs) for r in readers for m in r.matrices)
    return Work(
        attended,
        operation_counts.merged([*parts, operation_counts.rest(rest, attended)]),
        operation_counts.total(dense),
        read_bytes,
        baseline_bytes,
    )
