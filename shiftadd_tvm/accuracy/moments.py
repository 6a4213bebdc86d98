"""One walk of the unquantized model over the calibration windows, kept on disk block by block."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm.calibration import Calibration
from shiftadd_tvm.families import Decoder
from shiftadd_tvm.reference import WeightSource
from shiftadd_tvm.statistics_store import StatisticsStore

Array = np.ndarray


class Moments:
    """H = E[x x'] of the inputs of every linear."""

    def __init__(self, decoder: Decoder, folder: Path) -> None:
        self._decoder, self._store = decoder, StatisticsStore(folder)

    def measure(self, source: WeightSource, windows: Array, report: Callable[[str], None]) -> None:
        """Walk over `windows`, token ids int64 (W, T); blocks that an earlier walk finished are only
        passed through."""
        blocks = self._decoder.blocks()
        if all(self._store.has(_file(block)) for block in blocks):
            return
        walk = Calibration(source, windows)
        for block in blocks:
            report(f"calibration: {block}")
            if self._store.has(_file(block)):
                walk.pass_through(block)
                continue
            moments = {path: moment.numpy() for path, moment in walk.run(block).items()}
            self._store.put_tensors(_file(block), moments)

    def of(self, group: tuple[str, ...]) -> Tensor:
        """Return H, float32 (K, K), of the activation that the linears of `group` read."""
        block = next(b for b in self._decoder.blocks() if group[0].startswith(f"{b}."))
        return torch.from_numpy(self._store.tensor(_file(block), group[0]))


def _file(block: str) -> str:
    return f"{block}.safetensors"
