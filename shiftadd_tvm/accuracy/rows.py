"""One line of the table, and where finished ones are kept."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from shiftadd_tvm import block_fit, error_feedback
from shiftadd_tvm.statistics_store import StatisticsStore

_DIGITS = 16


@dataclass(frozen=True)
class Row:
    """What a method's weights do to the model."""

    method: str
    nominal_bits: float
    effective_bits: float  # codes and all scales, over the linears' weights
    perplexity: float
    gap: float  # ln(perplexity / reference perplexity); not finite where the weights gave no number
    seconds: float | None  # see docs/baselines.md; None where it was not measured here
    multiplication_free: bool
    remark: str
    output_error: float | None = None  # mean over weights of |X (W - What)'|^2 / |X W'|^2

    def to_dict(self) -> dict[str, object]:
        """Return the row as JSON types; what is not finite becomes None."""
        fields = asdict(self).items()
        return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in fields}


class RowStore:
    """A folder of finished rows, each with a mark of what made it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._store = StatisticsStore(folder)

    def get(self, name: str, maker: str, make: Callable[[], Row]) -> Row:
        """Return the row of this name that the same `maker` made, or make and keep it."""
        kept = self._store.json(f"{name}.json")
        if kept.pop("maker", None) == maker:
            return Row(**kept)  # type: ignore[arg-type]
        row = make()
        self._store.put_json(f"{name}.json", {"maker": maker, **asdict(row)})
        return row


def code_digest() -> str:
    """Return a digest of the sources that a baseline's numbers come from."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    files += [Path(str(module.__file__)) for module in (block_fit, error_feedback)]
    return digest(*(path.read_bytes() for path in files))


def digest(*parts: bytes) -> str:
    """Return a short sha256 of the parts in their order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:_DIGITS]
