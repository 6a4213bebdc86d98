"""The fit of `block_fit.py` for one group at a time, as fast as the feedback's inner loop needs it.

The values are sorted once. The codes of given scales are then intervals of them, and all that the
least squares needs of an interval are its count and sum: a round costs 2^q steps, not n. Rounds end
early where one changed no scale, since then no later one would.
"""

import math

import numpy as np

from shiftadd_tvm import powers

Array = np.ndarray

_TINY = 1e-6  # what the reference adds to both denominators of its conjugate gradient


def fit_levels(values: Array, bits: int, terms: int, rounds: int) -> Array:
    """Return the 2^bits sums of ±scales for float64 `values` (n,), ascending, float64.

    Scales are signed sums of at most `terms` powers of two.
    """
    planes, scales = _greedy(values, bits)
    if rounds == 0 or bits == 1:
        return _levels(_round(scales, terms))[0]
    ordered = np.sort(values)
    running = np.concatenate([[0.0], np.cumsum(ordered)])
    gram, target = planes @ planes.T, planes @ values
    for done in range(rounds):
        found = _round(_least_squares(gram.tolist(), target.tolist(), scales), terms)
        levels, patterns = _levels(found)
        if done and found == scales:
            break
        scales = found
        edges = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ordered)]])
        gram = (patterns.T * np.diff(edges)) @ patterns
        target = np.diff(running[edges]) @ patterns
    return levels


def _greedy(values: Array, bits: int) -> tuple[Array, list[float]]:
    rest, planes, scales = values, [], []
    for _ in range(bits):
        signs = np.where(rest >= 0, 1.0, -1.0)
        scale = float(np.abs(rest).mean())
        rest = rest - scale * signs
        planes.append(signs)
        scales.append(scale)
    return np.stack(planes), scales


def _least_squares(gram: list[list[float]], target: list[float], start: list[float]) -> list[float]:
    """Return q steps of conjugate gradient from `start`."""
    scales = list(start)
    residual = [t - _dot(row, scales) for t, row in zip(target, gram, strict=True)]
    direction, square = residual, _dot(residual, residual)
    for _ in start:
        image = [_dot(row, direction) for row in gram]
        step = square / (_dot(direction, image) + _TINY)
        scales = [s + step * d for s, d in zip(scales, direction, strict=True)]
        residual = [r - step * i for r, i in zip(residual, image, strict=True)]
        previous, square = square, _dot(residual, residual)
        turn = square / (previous + _TINY)
        direction = [r + turn * d for r, d in zip(residual, direction, strict=True)]
    return scales


def _dot(left: list[float], right: list[float]) -> float:
    return sum(map(float.__mul__, left, right))


def _round(scales: list[float], terms: int) -> list[float]:
    """Return |scales|, descending, each rounded as `powers.round_to_powers` rounds."""
    return [_nearest(scale, terms) for scale in sorted(map(abs, scales), reverse=True)]


def _nearest(value: float, terms: int) -> float:
    found = 0.0
    for _ in range(terms):
        rest = value - found
        exponent = round(math.log2(abs(rest))) if rest else -math.inf
        if exponent < -powers.MAX_EXPONENT:
            break
        found += math.copysign(2.0 ** min(exponent, powers.MAX_EXPONENT), rest)
    return found


def _levels(scales: list[float]) -> tuple[Array, Array]:
    """Return the sums of ±scales, ascending, and the signs that make each, (2^q, q)."""
    signs = _SIGNS[len(scales)]
    sums = signs @ np.array(scales)
    order = np.argsort(sums, kind="stable")
    return sums[order], signs[order]


def _all_signs(bits: int) -> Array:
    return ((np.arange(1 << bits)[:, None] >> np.arange(bits)) & 1) * 2.0 - 1.0


_SIGNS = {bits: _all_signs(bits) for bits in range(1, 5)}
