"""Fit W[n,k] ~ r[n] · s[k] · sum_i c[i] · b_i[n,k] to the *outputs* of one input group.

Each matrix has its own r, c and codes; s and the second moments H of the inputs are shared. c are
the sums of signs that approximate a normal distribution best, since rotated weights look like one.
A pass of GPTQ (`error_feedback.py`) chooses the first codes; then rounds of coordinate descent on the
codes (`coordinate_descent.py`) and of scales that are refitted for them, each to the least output
error under H:

    s <- the solution of K linear equations    (H o C'C) s = diag(C' W H),  C = r · levels
    r <- in closed form, row by row

and rounded to sums of powers of two at once, so that the next round makes up for the rounding. Each
matrix is first scaled by a power of two to an rms near 1, which goes back into its r.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import bcq, powers
from shiftadd_tvm.bcq import SeparableScales
from shiftadd_tvm.coordinate_descent import sweep
from shiftadd_tvm.error_feedback import Feedback, RoundColumn
from shiftadd_tvm.separable_fit import GAUSSIAN, encode, levels_of
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray

_RIDGE = 1e-3  # of the mean diagonal, towards the s that there is: H may be singular
_LEAST = 0.2  # of the s that there is: a fit below it is a column without information


@dataclass
class Coded:
    """One matrix: its codes and scales."""

    codes: Tensor  # float32 (N, K), of `levels`
    rows: Tensor  # r, float32 (N,), the matrix's own power of two not yet in it
    columns: Tensor  # s, float32 (K,)
    planes: Tensor  # c, float32 (bits,), descending
    exponent: int  # the true weights are 2^exponent times what r, s and c give

    @property
    def dense(self) -> Tensor:
        """The weights that codes and scales give, float32 (N, K)."""
        return self.codes * self.columns * self.rows[:, None] * 2.0**self.exponent

    @property
    def levels(self) -> Tensor:
        """The 2^bits sums of signs, ascending."""
        return levels_from(self.planes)

    def pack(self, settings: QuantizeSettings) -> tuple[Array, SeparableScales]:
        """Return planes and scales as a weight holds them."""
        index = torch.bucketize(self.codes, (self.levels[1:] + self.levels[:-1]) / 2).numpy()
        above = levels_of(self.planes.double().numpy())[1]  # of the non-negative levels, ascending
        patterns = np.concatenate([~above[::-1], above])
        planes = np.stack([bcq.pack_planes(pattern[index]) for pattern in patterns.T])
        columns = powers.round_to_terms(self.columns.numpy(), settings.column_terms)
        parts = (self.rows.numpy(), columns, self.planes.numpy())
        return planes, encode(*parts, self.exponent, settings)


def make_feedback(hessian: Tensor, settings: QuantizeSettings) -> Feedback:
    """Return the walk under `hessian` (K, K), most important inputs first."""
    return Feedback(hessian)


def fit(
    matrices: Sequence[Tensor],
    bits: Sequence[int],
    hessian: Tensor,
    feedback: Feedback,
    settings: QuantizeSettings,
    importance: Sequence[float] | None = None,
    rounds: int = 2,
) -> list[Coded]:
    """Return the codes and scales of each float32 (N_i, K) matrix for `hessian` (K, K), after so many
    `rounds` of better codes and refitted scales.

    `feedback` is made of the same `hessian`: its factor serves every choice of bits. `importance`
    weighs the output errors of the matrices against each other in s; by default each counts by the
    inverse of its own outputs' energy.
    """
    stack = _Stack(matrices, bits, hessian, settings, importance)
    stack.round(feedback)
    stack.fit_rows()
    for _ in range(rounds):
        stack.descend(feedback.order)
        stack.fit_columns()
        stack.fit_rows()
    return stack.results()


def levels_from(planes: Tensor) -> Tensor:
    """Return all sums of ±c[i], ascending, float32 (2^bits,)."""
    positive = torch.from_numpy(levels_of(planes.double().numpy())[0]).float()
    return torch.cat([-positive.flip(0), positive])


def round_terms(values: Tensor, terms: int) -> Tensor:
    """Return values rounded to sums of at most `terms` signed powers of two."""
    rounded = torch.from_numpy(powers.round_to_powers(values.cpu().numpy(), terms))
    return rounded.to(values.device)


class _Stack:
    """The matrices of a group, one below the other."""

    def __init__(
        self,
        matrices: Sequence[Tensor],
        bits: Sequence[int],
        hessian: Tensor,
        settings: QuantizeSettings,
        importance: Sequence[float] | None,
    ) -> None:
        self.hessian, self.settings = hessian, settings
        self.exponents = [_exponent(matrix) for matrix in matrices]
        scaled = [m * 2.0**-e for m, e in zip(matrices, self.exponents, strict=True)]
        self.weights = torch.cat(scaled)
        stops = np.cumsum([len(m) for m in matrices]).tolist()
        self.parts = [slice(a, b) for a, b in zip([0, *stops], stops, strict=False)]
        terms = settings.plane_terms
        planes = [np.sort(powers.round_to_powers(np.array(GAUSSIAN[b]), terms))[::-1] for b in bits]
        self.planes = [torch.from_numpy(p.copy()).float() for p in planes]
        self.spans = self._find_spans(bits)
        self.projected = self.weights @ hessian
        self.energy = (self.projected * self.weights).sum(1)
        self.importance = self._importance(importance)
        self._start()

    def _find_spans(self, bits: Sequence[int]) -> list[tuple[slice, Tensor, Tensor]]:
        """Return runs of rows with equal bits, their levels, and the middles between these."""
        spans = []
        pieces = zip(bits, self.parts, self.planes, strict=True)
        for _, run in itertools.groupby(pieces, key=lambda piece: piece[0]):
            members = list(run)
            levels = levels_from(members[0][2])
            rows = slice(members[0][1].start, members[-1][1].stop)
            spans.append((rows, levels, (levels[1:] + levels[:-1]) / 2))
        return spans

    def _importance(self, given: Sequence[float] | None) -> Tensor:
        result = torch.empty(len(self.weights))
        for index, part in enumerate(self.parts):
            if given is None:
                result[part] = 1 / self.energy[part].sum().clamp_min(1e-30)
            else:
                result[part] = given[index] * 4.0 ** self.exponents[index]
        return result / result.max().clamp_min(1e-30)

    def _start(self) -> None:
        rows = self.weights.square().mean(1).sqrt()
        self.rows = round_terms(rows, self.settings.row_terms)
        columns = (self.weights * _inverse(self.rows)[:, None]).square().mean(0).sqrt()
        self.columns = round_terms(columns, self.settings.column_terms)

    def round(self, feedback: Feedback) -> None:
        """Choose the codes for the scales that there are."""
        rounded = feedback.quantize(self.weights, self._round_column())
        self._set_codes(rounded)

    def descend(self, order: Tensor) -> None:
        """Choose each column of codes anew, in `order`, for the scales that there are."""
        coded = self.codes * self.rows[:, None] * self.columns
        swept = sweep(self.weights, coded, self.hessian, order, self._round_column())
        self._set_codes(swept)

    def _round_column(self) -> RoundColumn:
        """Return what rounds a column of weights to codes times scales."""
        inverse_rows = _inverse(self.rows)
        inverse_columns = _inverse(self.columns).tolist()
        columns = self.columns.tolist()

        def round_column(k: int, column: Tensor) -> Tensor:
            normalized = column * inverse_rows * inverse_columns[k]
            return self._nearest(normalized) * (self.rows * columns[k])

        return round_column

    def _set_codes(self, coded: Tensor) -> None:
        self.codes = self._nearest(coded * _inverse(self.rows)[:, None] * _inverse(self.columns))

    def _nearest(self, normalized: Tensor) -> Tensor:
        """Return the level nearest to each value, same shape."""
        found = torch.empty_like(normalized)
        for rows, levels, middles in self.spans:
            found[rows] = levels[torch.bucketize(normalized[rows], middles)]
        return found

    def fit_columns(self) -> None:
        """Set s to the least output error for the codes and r, rounded."""
        coded = self.codes * self.rows[:, None]
        weighted = coded * self.importance[:, None]
        matrix = (self.hessian * (weighted.T @ coded)).double()
        target = (self.projected * weighted).sum(0).double()
        ridge = _RIDGE * matrix.diagonal().mean().clamp_min(1e-30)
        matrix += ridge * torch.eye(len(matrix), dtype=matrix.dtype)
        solved = torch.linalg.solve(matrix, target + ridge * self.columns.double()).float()
        solved = torch.where(solved > _LEAST * self.columns, solved, self.columns)
        self.columns = round_terms(solved, self.settings.column_terms)

    def fit_rows(self) -> None:
        """Set r to the least output error for the codes and s, row by row, rounded."""
        coded = self.codes * self.columns
        projected = coded @ self.hessian
        norm = (projected * coded).sum(1)
        target = (projected * self.weights).sum(1)
        rows = torch.where(norm > 0, target / norm.clamp_min(1e-30), self.rows)
        rows = torch.where(rows > 0, rows, self.rows)
        self.rows = round_terms(rows, self.settings.row_terms)

    def results(self) -> list[Coded]:
        """Return each matrix by itself."""
        return [
            Coded(
                codes=self.codes[part],
                rows=self.rows[part],
                columns=self.columns,
                planes=planes,
                exponent=exponent,
            )
            for part, planes, exponent in zip(self.parts, self.planes, self.exponents, strict=True)
        ]


def _exponent(matrix: Tensor) -> int:
    square = float(matrix.double().square().mean())
    return int(np.clip(round(np.log2(square) / 2), -100, 100)) if square > 0 else 0


def _inverse(scale: Tensor) -> Tensor:
    """Return 1 / scale, and 0 where scale is 0."""
    return torch.where(scale != 0, 1 / scale, torch.zeros_like(scale))
