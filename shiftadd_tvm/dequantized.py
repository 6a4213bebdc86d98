"""Show a packed model as a float checkpoint: the weights that its planes and scales stand for.

It reads by rows, so that a large linear never exists more than once in float32.
"""

from collections.abc import Iterator

import numpy as np

from shiftadd_tvm import bcq
from shiftadd_tvm.families import Config
from shiftadd_tvm.packed import PackedModel

Array = np.ndarray

_CHUNK = 1 << 18  # weights that are dequantized at a time


class DequantizedModel:
    """`config`, `read` and `read_rows` of a checkpoint, over a packed model."""

    def __init__(self, packed: PackedModel) -> None:
        self.packed = packed
        kept = packed.config.items()
        self.config: Config = {key: value for key, value in kept if key != "quantization_config"}
        self._linears = {f"{linear}.weight": linear for linear in packed.linears()}

    def read(self, name: str) -> Array:
        """Return a tensor by its Hugging Face name, float32."""
        if name not in self._linears:
            return self.packed.read(name)
        return dequantize(self.packed.weight(self._linears[name]))

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of a tensor, float32."""
        if name not in self._linears:
            return self.packed.read_rows(name, start, stop)
        weight = self.packed.weight(self._linears[name])
        rows = dequantize_rows(weight, start, stop)
        if stop == weight.shape[0]:  # a walk over a model must not gather it in memory
            self.packed.release()
        return rows


def dequantize(weight: bcq.BCQWeight) -> Array:
    """Return `bcq.dequantize(weight)`, computed by rows."""
    return dequantize_rows(weight, 0, weight.shape[0])


def dequantize_rows(weight: bcq.BCQWeight, start: int, stop: int) -> Array:
    """Return rows [start, stop) of `bcq.dequantize(weight)`, float32 (stop - start, K)."""
    dense = np.empty((stop - start, weight.shape[1]), np.float32)
    for low, high in _spans(weight, start, stop):
        dense[low - start : high - start] = bcq.dequantize(_rows(weight, low, high))
    return dense


def _spans(weight: bcq.BCQWeight, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield pieces of [start, stop), none of which crosses the edge of a block of scales."""
    step = max(1, _CHUNK // weight.shape[1])
    rows = 1 if isinstance(weight.scales, bcq.SeparableScales) else weight.scales.rows
    while start < stop:
        edge = (start // rows + 1) * rows if rows > 1 else stop
        end = min(start + step, edge, stop)
        yield start, end
        start = end


def _rows(weight: bcq.BCQWeight, start: int, stop: int) -> bcq.BCQWeight:
    """Return rows [start, stop), which lie in one block of rows unless blocks have one row."""
    scales = weight.scales
    part: bcq.SeparableScales | bcq.BlockScales
    if isinstance(scales, bcq.SeparableScales):
        rows = scales.row_terms[start:stop]
        part = bcq.SeparableScales(rows, scales.column_terms, scales.plane_terms)
    else:
        terms = scales.block_terms[:, start // scales.rows : -(-stop // scales.rows)]
        part = bcq.BlockScales(scales.rows, scales.columns, terms)
    planes = weight.planes[:, start:stop]
    return bcq.BCQWeight((stop - start, weight.shape[1]), planes, part, weight.rotation)
