"""ShiftAddLLM's Lat. (You et al. 2024): 8 columns x an eighth of the rows share their scales.

The scales of a block are fitted when its first column comes up, and stay; the codes of each column
are chosen after its own feedback. Blocks of columns go in the order of their summed importance.
"""

import torch
from torch import Tensor

from shiftadd_tvm.accuracy.group_fit import fit_levels
from shiftadd_tvm.accuracy.method import Dequantized, Method
from shiftadd_tvm.error_feedback import Feedback, block_order

COLUMNS, PARTS = 8, 8
TERMS, ROUNDS = 3, 20
_TERM_BITS = 8


class _Blocks:
    """The levels of the block of columns that is being rounded."""

    def __init__(self, outputs: int, bits: int) -> None:
        self._bits = bits
        self.rows = -(-outputs // PARTS)
        self.parts = [slice(s, min(s + self.rows, outputs)) for s in range(0, outputs, self.rows)]
        self._levels = self._middles = torch.empty(0)

    def fit(self, columns: Tensor) -> None:
        """Fit the levels of columns (8, N); of less at the matrix's end."""
        values = columns.double().numpy()
        fitted = [fit_levels(values[:, p].ravel(), self._bits, TERMS, ROUNDS) for p in self.parts]
        levels = torch.stack([torch.from_numpy(one) for one in fitted]).float()
        of_row = torch.arange(columns.shape[1]) // self.rows
        self._levels = levels[of_row]
        self._middles = ((levels[:, 1:] + levels[:, :-1]) / 2)[of_row]

    def round(self, k: int, column: Tensor) -> Tensor:
        """Return the nearest levels of a column (N,)."""
        index = (column[:, None] >= self._middles).sum(1, keepdim=True)
        return self._levels.gather(1, index)[:, 0]


def quantize(weights: Tensor, hessian: Tensor, bits: int) -> Dequantized:
    """Return planes times powers of two, as the paper's kernels read them."""
    outputs, inputs = weights.shape
    blocks = _Blocks(outputs, bits)
    feedback = Feedback(hessian, order=block_order(hessian.diagonal(), COLUMNS))
    rounded = feedback.quantize(weights, blocks.round, blocks.fit, COLUMNS)
    scales = len(blocks.parts) * -(-inputs // COLUMNS) * bits * TERMS
    return Dequantized(rounded, bits + _TERM_BITS * scales / weights.numel())


METHODS = (
    Method(
        name="shiftaddllm-lat",
        quantize=quantize,
        widths=(2, 3, 4),
        multiplication_free=True,
        remark="as published: block-wise, what the paper's kernels run",
    ),
)
