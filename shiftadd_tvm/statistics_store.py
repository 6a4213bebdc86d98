"""What calibration measured, kept in a folder beside the shards: one file for each finished piece.

    windows.safetensors       the calibration tokens
    block-00000.safetensors   H of every input group of a block
    states.safetensors        the original model's states after its last norm
    energies.json             the loss that every linear brings for one of output error
    costs.json                the loss of every linear by its bits

Every file is written under a temporary name and renamed: what exists is whole.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from shiftadd_tvm.files import canonical_json
from shiftadd_tvm.tensorfile import TensorFile, write_tensors

Array = np.ndarray


class StatisticsStore:
    """A folder of measured pieces."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def has(self, name: str) -> bool:
        """Tell whether a piece is there."""
        return (self._folder / name).is_file()

    def put_tensors(self, name: str, tensors: dict[str, Array]) -> None:
        """Write arrays, float32 or int32."""
        dtypes = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32"}
        temporary = self._folder / f"{name}.tmp"
        entries = [(key, dtypes[array.dtype], array) for key, array in sorted(tensors.items())]
        write_tensors(temporary, entries, {"format": "pt"})
        temporary.replace(self._folder / name)

    def tensor(self, name: str, key: str) -> Array:
        """Return one array as a copy."""
        return np.array(TensorFile(self._folder / name).raw(key))

    def rows(self, name: str, key: str, indices: Array) -> Array:
        """Return the rows of these indices, int64 (n,), of one array as a copy: not all of it need
        fit into memory."""
        return TensorFile(self._folder / name).raw(key)[indices]

    def tensors(self, name: str) -> dict[str, Array]:
        """Return all arrays of a piece as copies."""
        return {key: self.tensor(name, key) for key in TensorFile(self._folder / name).names()}

    def put_json(self, name: str, value: object) -> None:
        """Write JSON."""
        temporary = self._folder / f"{name}.tmp"
        temporary.write_bytes(canonical_json(value))
        temporary.replace(self._folder / name)

    def json(self, name: str) -> dict[str, object]:
        """Return a JSON object, an empty one where there is none yet."""
        if not self.has(name):
            return {}
        value: dict[str, object] = json.loads((self._folder / name).read_text(encoding="utf-8"))
        return value

    def path(self, name: str) -> Path:
        """Return where a piece goes that somebody else writes."""
        return self._folder / name

    def remove(self) -> None:
        """Remove the folder: the work is done."""
        shutil.rmtree(self._folder)
