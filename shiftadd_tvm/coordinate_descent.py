"""Coordinate descent on codes: one column after the other takes the values that serve the outputs best.

For a linear W (N, K) whose inputs have second moments H (K, K), the output error of a coded What is
tr(D H D'), D = W - What. With all other columns fixed, it is least where column k is nearest to

    What[:, k] + (D H)[:, k] / H[k, k]                     (QuantEase, Behdin et al. 2023, section 3)

so a sweep over the columns never makes it worse. Output-error feedback decides each column once, without
the later ones' rounding; a sweep decides it again, knowing them all.
"""

import torch
from torch import Tensor

from shiftadd_tvm.error_feedback import RoundColumn

_BLOCK = 32  # columns that move before the others hear of it
DAMPING = 0.02  # of the mean diagonal, so that hardly seen directions count a little
_TINY = 1e-30  # in the place of H[k, k] of an input that is always 0: its column stays


def sweep(
    weights: Tensor, coded: Tensor, hessian: Tensor, order: Tensor, round_column: RoundColumn
) -> Tensor:
    """Return `coded`, float32 (N, K), after one sweep over its columns in `order`, int64 (K,).

    `weights` (N, K) are what is coded, `hessian` is (K, K), symmetric. `round_column` gets an input's
    index and the wanted column (N,), and returns the nearest column that has codes.
    """
    moments = hessian[order][:, order]
    moments.diagonal().add_(DAMPING * hessian.diagonal().mean())
    columns = coded.T[order].contiguous()
    slopes = moments @ (weights.T[order] - columns)  # of half the output error, negative: (K, N)
    diagonal = moments.diagonal().clamp_min(_TINY).tolist()
    inputs = order.tolist()
    for start in range(0, len(inputs), _BLOCK):
        stop = min(start + _BLOCK, len(inputs))
        inner = slopes[start:stop].clone()
        moves = torch.empty_like(inner)
        for i in range(start, stop):
            wanted = torch.add(columns[i], inner[i - start], alpha=1 / diagonal[i])
            rounded = round_column(inputs[i], wanted)
            moves[i - start] = rounded - columns[i]
            columns[i] = rounded
            later = moments[i + 1 : stop, i, None]
            inner[i - start + 1 :].addcmul_(later, moves[i - start], value=-1)
        slopes.addmm_(moments[:, start:stop], moves, alpha=-1)
    swept = torch.empty_like(columns)
    swept[order] = columns
    return swept.T.contiguous()
