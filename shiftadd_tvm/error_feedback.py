"""Output-error feedback: GPTQ's walk over the columns of a matrix (Frantar et al. 2023, algorithm 1).

For a linear W (N, K) whose inputs have second moments H = E[x x'] (K, K), the error of the output is
tr(dW H dW'). Columns are rounded one after the other; what is wrong with one is made up for by
those that are still open, by the upper Cholesky factor of H^-1. The most important inputs (largest
diagonal of H) go first; the order is undone in the results, so nothing of it is stored.
"""

from collections.abc import Callable

import torch
from torch import Tensor

RoundColumn = Callable[[int, Tensor], Tensor]  # (input k, column (N,)) -> rounded column (N,)
SeeRun = Callable[[Tensor], None]  # columns (run, N) as they stand before the first is rounded

DAMPING = 0.01  # of the mean diagonal, as GPTQ has it
_BLOCK = 32  # columns that are rounded before the open ones hear of it, or one run of them


class Feedback:
    """The order and the factor for one H; serves every matrix that reads the same activation."""

    def __init__(
        self, hessian: Tensor, damping: float = DAMPING, order: Tensor | None = None
    ) -> None:
        """Factor `hessian`, float32 (K, K), symmetric and positive semidefinite; `order`, int64 (K,),
        takes the place of the order by importance."""
        by_importance = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        self.order = by_importance if order is None else order
        ordered = hessian[self.order][:, self.order].double()
        self.factor = _factor(ordered, damping).float()

    def quantize(
        self,
        weights: Tensor,
        round_column: RoundColumn,
        see_run: SeeRun | None = None,
        run: int = 1,
    ) -> Tensor:
        """Return the rounded matrix (N, K).

        `see_run` gets every `run` columns of the order before the first of them is rounded: for scales
        that several columns share.
        """
        columns = weights.T[self.order].contiguous()
        rounded = torch.empty_like(columns)
        inputs, block = self.order.tolist(), max(1, _BLOCK // run) * run
        for start in range(0, len(inputs), block):
            stop = min(start + block, len(inputs))
            factor = self.factor[start:stop]
            errors = torch.empty_like(columns[start:stop])
            for i in range(start, stop):
                if see_run is not None and i % run == 0:
                    see_run(columns[i : min(i + run, stop)])
                rounded[i] = round_column(inputs[i], columns[i])
                errors[i - start] = (columns[i] - rounded[i]) / self.factor[i, i]
                later = factor[i - start, i + 1 : stop, None]
                columns[i + 1 : stop].addcmul_(later, errors[i - start], value=-1)
            columns[stop:].addmm_(factor[:, stop:].T, errors, alpha=-1)
        restored = torch.empty_like(rounded)
        restored[self.order] = rounded
        return restored.T.contiguous()


def block_order(importance: Tensor, columns: int) -> Tensor:
    """Return the inputs, int64 (K,), by the importance (K,) of the blocks of so many neighbours that
    they are in; a short block comes last."""
    whole = len(importance) // columns * columns
    sums = importance[:whole].reshape(-1, columns).sum(1)
    first = torch.argsort(sums, descending=True, stable=True) * columns
    blocks = (first[:, None] + torch.arange(columns)).reshape(-1)
    return torch.cat([blocks, torch.arange(whole, len(importance))])


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """Return the squared output error of each row, x' dW[n] squared and averaged: float32 (N,)."""
    return ((difference @ hessian) * difference).sum(1)


def relative_output_error(weights: Tensor, found: Tensor, hessian: Tensor) -> float:
    """Return tr(dW H dW') / tr(W H W') of `found` in the place of `weights`, both (N, K)."""
    error = float(output_error(found - weights, hessian).sum())
    energy = float(output_error(weights, hessian).sum())
    return error / energy if energy else 0.0


def _factor(hessian: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped `hessian`, float64."""
    mean = hessian.diagonal().mean()
    identity = torch.eye(len(hessian), dtype=hessian.dtype)
    scale = mean if mean > 0 else torch.ones_like(mean)  # no input was ever seen: plain rounding
    while True:
        lower, failed = torch.linalg.cholesky_ex(hessian + damping * scale * identity)
        if not failed:
            break
        damping *= 10  # H is singular but for rounding: more damping always ends it
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
