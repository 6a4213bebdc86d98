"""What attention does to q · k before the softmax: scale, soft cap, ALiBi, window.

`ops/attend.py` scores a run of pages at a time; `adjustment` changes the scores of one of its rows. A
position that a row does not see gets a score below all others.
"""

import math
from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import Select, const

from shiftadd_tvm.ops.activation import capped
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.shift import Array

LOWEST = -3.0e38  # below every score, and finite: exp of a difference stays defined


@dataclass(frozen=True)
class Scores:
    """scale · q · k, then cap · tanh(score / cap), then less slope · distance (ALiBi); a position sees
    the last `window` ones, itself included. 0 leaves cap and window out."""

    scale: float
    window: int = 0
    cap: float = 0.0
    alibi: bool = False

    def first_page(self, position):
        """Return the page of the first position that the one at `position` sees."""
        return T.max(position - (self.window - 1), 0) // PAGE if self.window else 0


def adjustment(scores: Scores, heads: int, group: int, run: int):
    """Return what changes row u of the scores of `run` pages; `own` is the row's own position in them,
    negative or beyond them where it lies elsewhere."""
    window, cap, alibi, soft = scores.window, scores.cap, scores.alibi, scores.cap > 0

    @T.inline
    def adjust(found, slots, own, h, row, u):
        if soft:
            for p in T.unroll(run):
                for j in T.vectorized(PAGE):
                    found[u, p * PAGE + j] = capped(found[u, p * PAGE + j], cap)
        if alibi:
            slope = T.bind(alibi_slope(h * group + row % group, heads))
            for p in T.unroll(run):
                for j in T.vectorized(PAGE):
                    found[u, p * PAGE + j] = found[u, p * PAGE + j] + slope * T.Cast(
                        "float32", slots[j] + (p * PAGE - own)
                    )
        if window > 0:
            for p in T.unroll(run):
                for j in T.vectorized(PAGE):
                    found[u, p * PAGE + j] = T.Select(
                        slots[j] > own - window - p * PAGE,
                        found[u, p * PAGE + j],
                        T.float32(LOWEST),
                    )

    return adjust


def alibi_slope(head, heads: int):
    """Return the slope of a head, float32, as an expression: see `alibi_slopes`."""
    whole, number = 1 << int(math.log2(heads)), lambda value: const(value, "float32")
    place = head.astype("float32")
    steps = (place + number(1.0)) * number(8.0 / whole)
    if whole < heads:
        rest = (place - number(whole) + number(0.5)) * number(8.0 / whole)
        steps = Select(place < number(whole), steps, rest)
    return exp(steps * number(-math.log(2)))


def alibi_slopes(heads: int) -> Array:
    """Return by how much each head's scores fall with a position of distance, float64 (heads,): the
    powers of 2^(-8 / c), c the largest power of two up to `heads`, and those between them for the
    rest (Press et al. 2022)."""
    whole = 1 << int(math.log2(heads))
    steps = [8 * (h + 1) / whole for h in range(whole)]
    steps += [4 * (2 * h + 1) / whole for h in range(heads - whole)]
    return np.exp2(-np.array(steps))


def reference_scores(products: Array, scores: Scores) -> Array:
    """Return the scores (heads, p + 1) of position p for products q · k (heads, p + 1), float64."""
    found = products * scores.scale
    if scores.cap:
        found = scores.cap * np.tanh(found / scores.cap)
    distances = np.arange(found.shape[1])[::-1]
    if scores.alibi:
        found = found - alibi_slopes(len(found))[:, None] * distances
    return np.where(distances < scores.window, found, -np.inf) if scores.window else found


REFERENCES: dict[str, object] = {}  # no operator of its own: a part of `attend`
