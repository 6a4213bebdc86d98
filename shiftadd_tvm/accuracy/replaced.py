"""A checkpoint whose linears are read from elsewhere: from files of dequantized weights."""

from pathlib import Path

import numpy as np

from shiftadd_tvm.families import Config
from shiftadd_tvm.reference import WeightSource
from shiftadd_tvm.statistics_store import StatisticsStore
from shiftadd_tvm.tensorfile import TensorFile

Array = np.ndarray

_KEY = "weight"
_NOTES = "notes.json"
_MAKER = "maker"


class ReplacedLinears:
    """A `WeightSource` over `source`; linears that were `put` come from `folder`, one file each."""

    def __init__(self, source: WeightSource, folder: Path, maker: str) -> None:
        """Go on with what the same `maker` left in `folder`; what another one left is removed."""
        self._source = source
        self.config: Config = source.config
        self._store = StatisticsStore(folder)
        if self._store.json(_NOTES).get(_MAKER) != maker:
            self._store.remove()
            self._store = StatisticsStore(folder)
            self._store.put_json(_NOTES, {_MAKER: maker})

    def notes(self) -> dict[str, object]:
        """Return what was noted of every linear that was put, by its path."""
        return {name: note for name, note in self._store.json(_NOTES).items() if name != _MAKER}

    def put(self, linear: str, weights: Array, note: object) -> None:
        """Keep the float32 (N, K) weights of the linear at this path, and a JSON note of it."""
        self._store.put_tensors(_file(linear), {_KEY: weights})
        self._store.put_json(_NOTES, {**self._store.json(_NOTES), linear: note})

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of a tensor, float32."""
        linear = name.removesuffix(".weight")
        if linear != name and self._store.has(_file(linear)):
            return TensorFile(self._store.path(_file(linear))).read_rows(_KEY, start, stop)
        return self._source.read_rows(name, start, stop)

    def remove(self) -> None:
        """Remove the files: the model was scored."""
        self._store.remove()


def _file(linear: str) -> str:
    return f"{linear}.safetensors"
