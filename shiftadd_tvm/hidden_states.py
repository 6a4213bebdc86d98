"""Where the hidden states of calibration lie between two blocks: in memory, or in files when asked."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm.errors import OutputError

Take = Callable[[], Tensor]  # gives the states back, once


class Place(Protocol):
    """What keeps states, float32."""

    def keep(self, states: Tensor) -> Take:
        """Keep states that the caller lets go of."""

    def room(self, shape: tuple[int, ...]) -> Tensor:
        """Return states of this shape, to be written."""


class InMemory:
    """States stay as they are."""

    def keep(self, states: Tensor) -> Take:
        """Keep states that the caller lets go of."""
        return lambda: states

    def room(self, shape: tuple[int, ...]) -> Tensor:
        """Return states of this shape, to be written."""
        return torch.empty(shape)


class OnDisk:
    """States lie in files of a folder, each until it is taken; the folder is the caller's to remove."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet."""
        self._paths = (folder / f"states-{number}.bin" for number in itertools.count())

    def keep(self, states: Tensor) -> Take:
        """Write states; raises `OutputError` where the disk is full."""
        path, shape = next(self._paths), states.shape
        try:
            states.detach().contiguous().numpy().tofile(path)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error}); calibration with --spill needs "
                f"{states.numel() * 4 / 1e6:.0f} MB there: free them, or leave --spill out."
            ) from None

        def take() -> Tensor:
            content = np.fromfile(path, np.float32)
            path.unlink()
            return torch.from_numpy(content).reshape(shape)

        return take

    def room(self, shape: tuple[int, ...]) -> Tensor:
        """Return states of this shape, whose memory is a file's."""
        return torch.from_numpy(np.memmap(next(self._paths), np.float32, "w+", shape=shape))
