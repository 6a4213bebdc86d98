"""Sparse experts: which of them a token goes through, and the sum of what they return.

A router scores every expert. A token goes through the few with the largest scores, of equal ones the
first; their outputs are weighed by the softmax of their scores, which is 0 for all others.
"""

import functools

import numpy as np
from tvm import te, tirx
from tvm.tirx import const

from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.shift import Array


def route(scores, chosen: int):
    """Return the weight of each expert, float32 (n, E), by scores (n, E): `chosen` are not 0."""
    rows, count = scores.shape[0], int(scores.shape[1])
    other, best, part = (te.reduce_axis((0, count), name) for name in ("other", "best", "part"))

    def ahead(i, e):
        first = tirx.And(scores[i, other] == scores[i, e], other < e)
        wins = tirx.Or(scores[i, other] > scores[i, e], first)
        return te.sum(tirx.Select(wins, const(1, "int32"), const(0, "int32")), axis=other)

    rank = te.compute((rows, count), ahead, name="rank")
    largest = te.compute((rows,), lambda i: te.max(scores[i, best], axis=best), name="largest")
    share = lambda i, e: tirx.Select(
        rank[i, e] < chosen, exp(scores[i, e] - largest[i]), const(0.0, "float32")
    )
    shares = te.compute((rows, count), share, name="shares")
    total = te.compute((rows,), lambda i: te.sum(shares[i, part], axis=part), name="total")
    return te.compute((rows, count), lambda i, e: shares[i, e] / total[i], name="y")


def mix(routes, *outputs):
    """Return the sum of the experts' outputs, each float32 (n, H), by their weights (n, E); what an
    expert of weight 0 returns may be anything, NaN included."""
    zero = const(0.0, "float32")

    def weighed(i, j):
        parts = [
            tirx.Select(routes[i, e] > zero, routes[i, e] * output[i, j], zero)
            for e, output in enumerate(outputs)
        ]
        return functools.reduce(lambda left, right: left + right, parts)

    return te.compute(outputs[0].shape, weighed, name="y")


def reference_route(scores: Array, chosen: int) -> Array:
    """Return `route` of scores (n, E)."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :chosen]
    best = np.take_along_axis(scores, order, 1).astype(np.float64)
    powers = np.exp(best - best.max(axis=1, keepdims=True))
    weights = np.zeros(scores.shape, np.float32)
    np.put_along_axis(weights, order, powers / powers.sum(axis=1, keepdims=True), 1)
    return weights


def reference_mix(routes: Array, *outputs: Array) -> Array:
    """Return `mix` of weights (n, E) and outputs (n, H)."""
    columns = routes.T[:, :, None].astype(np.float64)
    parts = [np.where(w > 0, w * y, 0) for w, y in zip(columns, outputs, strict=True)]
    total: Array = np.sum(parts, axis=0).astype(np.float32)
    return total


REFERENCES = {"route": reference_route, "mix": reference_mix}
