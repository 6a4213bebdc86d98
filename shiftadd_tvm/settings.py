"""What `quantize` was asked to do: one frozen record, checked where it is made."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from shiftadd_tvm.bcq import MAX_BITS, MAX_TERMS
from shiftadd_tvm.effort import EFFORTS, Effort
from shiftadd_tvm.errors import UsageError

# (rows, columns) of the blocks that share a scale when none are asked for; 0 = the whole matrix
DEFAULT_BLOCKS = {
    "separable": (0, 0),
    "row-group": (1, 128),
    "column-wise": (0, 1),
    "block-wise": (128, 8),
}


CALIBRATED = ("shiftadd",)  # methods that run the model on text
CRITERIA = ("measured", "paper")


@dataclass(frozen=True)
class QuantizeSettings:
    """Bits, scale format, terms, rotation and embeddings; `UsageError` when a value cannot be used.

    `bits_per_module` overrides `bits` for a linear, named by its whole module path or by its path
    inside every block. `rows` and `columns` of None mean the format's default block. `bits` may be an
    average such as 2.2 for a calibrated method, which also chooses the bits of each linear where
    `mixed` says so. `calibration_text` is a file; without one the model writes its own text.
    """

    bits: float = 4
    bits_per_module: Mapping[str, int] = field(default_factory=dict)
    scale_format: str = "separable"
    rows: int | None = None
    columns: int | None = None
    row_terms: int = 3
    column_terms: int = 3
    plane_terms: int = 3
    block_terms: int = 3
    rounds: int = 5  # of the data-free method; a calibrated one has those of its effort
    max_rotation: int = 256  # 0: no rotation
    seed: int = 0
    embedding_bits: int = 16  # 16: as in the checkpoint
    method: str = "alternating"
    effort: str = "normal"
    mixed: bool = True
    criterion: str = "measured"  # of CRITERIA: how sensitive a linear is to its bits
    latencies: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # `latencies.py`
    latency: float | None = None  # microseconds of all linears of a decode step; None: no matter
    calibration_text: str | None = None
    calibration_tokens: int | None = None  # None: as the effort has it
    own_text: float = 0.0  # the share of tokens that the model writes beside a calibration text

    def __post_init__(self) -> None:
        """Check every value; a whole number of bits is an int, however it was written."""
        between = isinstance(self.bits, int | float) and 1 <= self.bits <= MAX_BITS
        average = f"a number from 1 to {MAX_BITS}, whole for a method without calibration"
        _require(between and (self.calibrated or self.bits % 1 == 0), "bits", self.bits, average)
        if self.bits % 1 == 0:
            object.__setattr__(self, "bits", int(self.bits))
        for name, bits in self.bits_per_module.items():
            whole = type(bits) is int and 1 <= bits <= MAX_BITS
            _require(whole, name, bits, f"a whole number from 1 to {MAX_BITS}")
        formats = ", ".join(DEFAULT_BLOCKS)
        _require(self.scale_format in DEFAULT_BLOCKS, "scale format", self.scale_format, formats)
        for name, limit in MAX_TERMS.items():
            _require(
                getattr(self, name) in range(1, limit + 1), name, getattr(self, name), f"1-{limit}"
            )
        rows, columns = self.block
        _require(rows >= 0, "rows", rows, "0 (all) or more")
        _require(
            columns == 1 or (columns >= 0 and columns % 4 == 0), "columns", columns, "1 or 4 j"
        )
        _require(self.rounds >= 0, "rounds", self.rounds, "0 or more")
        _require(0 <= self.seed < 1 << 63, "seed", self.seed, "0 or more, below 2^63")
        powers = (0, 4, 16, 64, 256, 1024, 4096)
        _require(
            self.max_rotation in powers, "rotation block", self.max_rotation, f"one of {powers}"
        )
        _require(self.embedding_bits in (8, 16), "embedding bits", self.embedding_bits, "8 or 16")
        _require(self.effort in EFFORTS, "effort", self.effort, ", ".join(EFFORTS))
        _require(self.criterion in CRITERIA, "criterion", self.criterion, ", ".join(CRITERIA))
        _require(
            self.latency is None or self.latency > 0 and self.calibrated and self.mixed,
            "latency",
            self.latency,
            "more than 0, and bits of a calibrated method that may differ",
        )
        tokens = self.calibration_tokens
        _require(tokens is None or tokens > 0, "calibration tokens", tokens, "1 or more")
        share = self.own_text
        given = share == 0 or self.calibrated and self.calibration_text is not None
        expected = "from 0 to below 1, beside a calibration text; without one all is the model's own"
        _require(0 <= share < 1 and given, "own text", share, expected)

    @property
    def calibrated(self) -> bool:
        """Tell whether the method runs the model on text."""
        return self.method in CALIBRATED

    @property
    def allocates(self) -> bool:
        """Tell whether the bits of each linear are still to be chosen."""
        return (
            self.calibrated
            and not self.bits_per_module
            and (
                self.latency is not None
                or self.bits % 1 != 0
                or (self.mixed and self.bits < MAX_BITS)
            )
        )

    @property
    def measures_losses(self) -> bool:
        """Tell whether each linear's loss is measured, to choose its bits by it."""
        return self.allocates and self.criterion == "measured"

    @property
    def amounts(self) -> Effort:
        """Return how much work a calibrated method does."""
        return EFFORTS[self.effort]

    @property
    def tokens(self) -> int:
        """Return the tokens of calibration."""
        own = self.calibration_text is None
        return self.calibration_tokens or (self.amounts.own_tokens if own else self.amounts.tokens)

    @property
    def own_tokens(self) -> int:
        """Return how many of the `tokens` the model writes itself: all without a calibration text."""
        own = self.calibration_text is None
        return self.tokens if own else round(self.tokens * self.own_text)

    @property
    def steps(self) -> int:
        """Return the steps of tuning the whole model: separable scales alone are tuned."""
        separable = self.scale_format == "separable"
        return self.amounts.steps if self.calibrated and separable else 0

    @property
    def block(self) -> tuple[int, int]:
        """Return (rows, columns) of a block that shares a scale; 0 = the whole matrix."""
        rows, columns = DEFAULT_BLOCKS[self.scale_format]
        return (
            rows if self.rows is None else self.rows,
            columns if self.columns is None else self.columns,
        )

    @property
    def terms(self) -> dict[str, int]:
        """Return the number of power-of-two terms of each kind of scale that the format stores."""
        if self.scale_format == "separable":
            names = ["row_terms", "column_terms", "plane_terms"]
        else:
            names = ["block_terms"]
        return {name: getattr(self, name) for name in names}

    def bits_of(self, linear: str) -> int:
        """Return the bits of a linear, by its whole module path."""
        if linear in self.bits_per_module:
            return self.bits_per_module[linear]
        inside = [
            bits for name, bits in self.bits_per_module.items() if linear.endswith(f".{name}")
        ]
        return inside[0] if inside else int(self.bits)

    def to_dict(self) -> dict[str, object]:
        """Return the settings as JSON types, to compare two runs by."""
        return {**dataclasses.asdict(self), "bits_per_module": dict(self.bits_per_module)}


def _require(true: bool, name: str, found: object, expected: str) -> None:
    if not true:
        raise UsageError(
            f"Quantization with {name} = {found!r} is not possible, expected {expected}."
        )
