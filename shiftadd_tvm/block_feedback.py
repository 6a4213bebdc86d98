"""Output-error feedback around scales of blocks: row-group, column-wise and block-wise (bcq.BlockScales).

As the paper has it (ShiftAddLLM, section 4.2): the walk over the columns (`error_feedback.py`) fits the
scales of a block of columns when its first one comes up, on what feedback has made of them, by the
alternating fit of `block_fit.py`; the codes of each column follow after its own feedback. Here the
blocks may be of any size, and sweeps of coordinate descent better the codes at the end. The scales
stay: to fit them anew for the outputs' error, all blocks of a row would have to be solved together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import bcq, block_fit, powers
from shiftadd_tvm.coordinate_descent import sweep
from shiftadd_tvm.error_feedback import Feedback, block_order
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray


@dataclass
class Coded:
    """One matrix: its codes and scales."""

    planes: Array  # bool (bits, N, K)
    scales: bcq.BlockScales
    dense: Tensor  # the weights that codes and scales give, float32 (N, K)

    def pack(self, settings: QuantizeSettings) -> tuple[Array, bcq.BlockScales]:
        """Return planes and scales as a weight holds them."""
        return bcq.pack_planes(self.planes), self.scales


def make_feedback(hessian: Tensor, settings: QuantizeSettings) -> Feedback:
    """Return the walk under `hessian` (K, K) that goes through the columns of a block together."""
    columns = settings.block[1] or len(hessian)
    return Feedback(hessian, order=block_order(hessian.diagonal(), columns))


def fit(
    matrices: Sequence[Tensor],
    bits: Sequence[int],
    hessian: Tensor,
    feedback: Feedback,
    settings: QuantizeSettings,
    importance: Sequence[float] | None = None,
    rounds: int = 2,
) -> list[Coded]:
    """Return the codes and scales of each float32 (N_i, K) matrix for `hessian` (K, K), its codes
    bettered `rounds` times. `feedback` is of `make_feedback`; matrices share no scale, so that their
    `importance` does not matter."""
    pairs = zip(matrices, bits, strict=True)
    return [_fit_one(m, b, hessian, feedback, settings, rounds) for m, b in pairs]


def _fit_one(
    matrix: Tensor,
    bits: int,
    hessian: Tensor,
    feedback: Feedback,
    settings: QuantizeSettings,
    rounds: int,
) -> Coded:
    blocks = _Blocks(tuple(matrix.shape), bits, settings, feedback.order)
    coded = feedback.quantize(matrix, blocks.round, blocks.fit, blocks.columns)
    for _ in range(rounds):
        coded = sweep(matrix, coded, hessian, feedback.order, blocks.round)
    return Coded(blocks.planes(coded), blocks.scales(), coded)


class _Blocks:
    """The blocks of a matrix: their scales, as far as they are fitted, and the levels these make."""

    def __init__(
        self, shape: tuple[int, ...], bits: int, settings: QuantizeSettings, order: Tensor
    ) -> None:
        self._shape, self._bits, self._settings = shape, bits, settings
        self._rows, self.columns = (
            asked or size for asked, size in zip(settings.block, shape, strict=True)
        )
        self._of_row = torch.arange(shape[0]) // self._rows
        count = (-(-shape[0] // self._rows), -(-shape[1] // self.columns))
        self._terms = np.zeros((bits, *count, settings.block_terms), np.uint8)
        self._coming = iter((order[:: self.columns] // self.columns).tolist())
        # by the block of columns: ascending levels (rows of blocks, 2^bits), their middles and numbers
        self._levels: dict[int, tuple[Tensor, Tensor, Array]] = {}

    def fit(self, columns: Tensor) -> None:
        """Fit the scales of the blocks that the next columns (run, N) are."""
        values = columns.T.double().numpy()
        groups = block_fit.to_groups(values, self._rows, self.columns)
        present = block_fit.to_groups(np.ones_like(values), self._rows, self.columns)
        how = (self._settings.rounds, self._settings.block_terms)
        _, terms = block_fit.fit_groups(groups, present, self._bits, *how)
        block = next(self._coming)
        self._terms[:, :, block] = np.moveaxis(terms, 0, 1)
        levels, numbers = block_fit.levels(powers.decode_terms(terms).astype(np.float64))
        found = torch.from_numpy(levels).float()
        self._levels[block] = found, (found[:, 1:] + found[:, :-1]) / 2, numbers

    def round(self, k: int, column: Tensor) -> Tensor:
        """Return the nearest levels of a column (N,)."""
        levels = self._levels[k // self.columns][0][self._of_row]
        return levels.gather(1, self._index(k, column)[:, None])[:, 0]

    def _index(self, k: int, column: Tensor) -> Tensor:
        middles = self._levels[k // self.columns][1][self._of_row]
        return (column[:, None] >= middles).sum(1)

    def planes(self, coded: Tensor) -> Array:
        """Return the planes, bool (bits, N, K), of coded weights (N, K)."""
        found = np.empty((self._bits, *self._shape), bool)
        for k in range(self._shape[1]):
            numbers = self._levels[k // self.columns][2][self._of_row.numpy()]
            index = self._index(k, coded[:, k]).numpy()[:, None]
            chosen = np.take_along_axis(numbers, index, 1)[:, 0]
            found[:, :, k] = block_fit.planes_of(chosen, self._bits)
        return found

    def scales(self) -> bcq.BlockScales:
        """Return the scales of all blocks."""
        return bcq.BlockScales(self._rows, self.columns, self._terms)
