"""Output-error feedback and binary coding as a textbook has them, for the tests: float64, no tricks."""

import itertools
from collections.abc import Callable

import numpy as np

Array = np.ndarray


def feedback(
    weights: Array, hessian: Array, order: list[int], round_column: Callable[[int, Array], Array]
) -> Array:
    """Return weights (N, K) rounded input by input; `round_column` gets k and all weights as they
    stand. The inverse of H loses a row and a column with each (Frantar & Alistarh 2022)."""
    now, rounded = weights.astype(np.float64), np.zeros(weights.shape)
    damped = hessian.astype(np.float64)
    damped = damped + 0.01 * np.diag(damped).mean() * np.eye(len(damped))
    inverse = np.linalg.inv(damped)
    for place, k in enumerate(order):
        rounded[:, k] = round_column(k, now)
        error = (now[:, k] - rounded[:, k]) / inverse[k, k]
        for later in order[place + 1 :]:
            now[:, later] -= error * inverse[k, later]
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return rounded


def uniform(value: float, group: Array, bits: int) -> float:
    """Return `value` on the asymmetric grid of `group`."""
    low, high = min(group.min(), 0.0), max(group.max(), 0.0)
    step = float(np.float16((high - low) / (2**bits - 1))) or 1.0
    zero = np.clip(np.round(-low / step), 0, 2**bits - 1)
    code = np.clip(np.round(value / step + zero), 0, 2**bits - 1)
    return float((code - zero) * step)


def levels(scales: Array) -> Array:
    """Return all sums of ±scales, ascending."""
    signs = itertools.product((-1, 1), repeat=len(scales))
    return np.sort([float(np.dot(sign, scales)) for sign in signs])


def nearest(values: Array, points: Array) -> Array:
    """Return the nearest of `points` to each value."""
    return points[np.abs(values[:, None] - points).argmin(1)]


def binary_coding(group: Array, bits: int, rounds: int) -> Array:
    """Return `group` as sums of ±scales in half precision, codes and scales fitted in turn."""
    signs, rest = [], group
    for _ in range(bits):
        signs.append(np.where(rest >= 0, 1.0, -1.0))
        rest = rest - np.abs(rest).mean() * signs[-1]
    planes = np.array(signs)
    patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=bits)))
    for _ in range(rounds):
        fitted = np.linalg.lstsq(planes.T, group, rcond=None)[0]
        scales = np.sort(np.abs(fitted))[::-1].astype(np.float16).astype(np.float64)
        sums = patterns @ scales
        chosen = np.abs(group[:, None] - sums).argmin(1)
        planes = patterns[chosen].T
    return sums[chosen]


def inputs(outputs: int, width: int, seed: int = 0) -> tuple[Array, Array]:
    """Return weights (N, K) and second moments (K, K) of correlated inputs of unequal sizes."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) * np.exp(rng.standard_normal(width))
    x = rng.standard_normal((4 * width, width)) @ (mixing + 3 * np.diag(np.diag(mixing)))
    weights = rng.standard_normal((outputs, width)) * 0.05
    return weights.astype(np.float32), (x.T @ x / len(x)).astype(np.float32)
