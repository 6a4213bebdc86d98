"""The step of `attend`: some rows, query heads of tokens, over a run of pages of the cache.

A page is scored by all rows of a tile at once; then each row's scores of the run become weights, by the
running maximum of the online softmax, and weigh the values. In decode every page comes from memory,
and lies elsewhere than the one before: the beginning of what comes next is asked for ahead.
"""

import numpy as np
from tvm.script import tirx as T

from shiftadd_tvm.ops.attention import EXPONENTS, PAGE, power
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.scores import LOWEST, Scores, adjustment

RUN = 4  # pages that are softened together
SUMS = 6  # vectors of scores at most that are summed together: they fill the registers of AVX2
COLUMNS = 64  # of an output that are summed together
LINE = 64  # bytes that memory gives at once
REACH = 64  # lines, 4 kB: as far as a processor's own prefetcher goes
AHEAD = 16  # of so many: it goes on by itself


def divisor(size: int, most: int) -> int:
    """Return the largest divisor of `size` that is at most `most`."""
    return max(part for part in range(1, most + 1) if size % part == 0)


@T.inline
def _fold(top, width):
    for j in T.vectorized(width):
        top[j] = T.max(top[j], top[j + width])


@T.inline
def _soften(scores, top, slots, seen, fresh, peak, weight, row, u):
    """Turn scores into weights; fresh[0] becomes what rescales all that came before."""
    for j in T.vectorized(PAGE):
        top[j] = T.float32(LOWEST)
    for p in T.unroll(RUN):
        for j in T.vectorized(PAGE):
            scores[u, p * PAGE + j] = T.Select(
                slots[j] < seen[0] - p * PAGE, scores[u, p * PAGE + j], T.float32(LOWEST)
            )
            top[j] = T.max(top[j], scores[u, p * PAGE + j])
    _fold(top, 8)
    _fold(top, 4)
    _fold(top, 2)
    _fold(top, 1)
    fresh[1] = T.max(peak[row], top[0])
    fresh[0] = exp(peak[row] - fresh[1])
    peak[row] = fresh[1]
    for j in T.vectorized(PAGE):
        weight[row, j] = weight[row, j] * fresh[0]
    for p in T.unroll(RUN):
        for j in T.vectorized(PAGE):
            # what the row does not see weighs e^-87 at most: nothing beside the peak's 1
            scores[u, p * PAGE + j] = exp(scores[u, p * PAGE + j] - fresh[1])
            weight[row, j] = weight[row, j] + scores[u, p * PAGE + j]


@T.inline
def _scale(scores, keys, layer, page, h, exponents, u, p):
    for j in T.vectorized(PAGE):
        scores[u, p * PAGE + j] = scores[u, p * PAGE + j] * power(keys[layer, page, h, exponents, j])


def _score(head_dim: int, tile: int, parts: int, rounded: bool):
    """Return how `tile` rows score a page; a score is split into `parts` sums, since few rows alone
    would not hide the latency of an addition. Keys may be `rounded` to int8."""

    @T.inline
    def score(scores, sums, queries, keys, layer, page, h, first, p):
        for part, u in T.grid(parts, tile):
            for j in T.vectorized(PAGE):
                sums[part, u, j] = T.float32(0)
        for d in T.serial(head_dim // parts):
            for part in T.unroll(parts):
                for u in T.unroll(tile):
                    for j in T.vectorized(PAGE):
                        sums[part, u, j] = (
                            sums[part, u, j]
                            + queries[first + u, d * parts + part]
                            * T.Cast("float32", keys[layer, page, h, d * parts + part, j])
                        )
        for part in T.unroll(parts - 1):
            for u in T.unroll(tile):
                for j in T.vectorized(PAGE):
                    sums[0, u, j] = sums[0, u, j] + sums[part + 1, u, j]
        for u in T.unroll(tile):
            for j in T.vectorized(PAGE):
                scores[u, p * PAGE + j] = sums[0, u, j]
            if rounded:
                _scale(scores, keys, layer, page, h, head_dim, u, p)

    return score


def _gather(head_dim: int, rounded: bool):
    """Return how a row adds the values of a run of pages, which may be `rounded`, to its total."""
    size = divisor(head_dim, COLUMNS)

    @T.inline
    def gather(total, scores, seen, fresh, keys, values, table, s, layer, h, row, u, page, pages):
        sums = T.alloc_buffer((size,), "float32")
        if rounded:
            for p in T.serial(pages):
                _scale(scores, keys, layer, table[s, page + p], h, head_dim + 1, u, p)
        for x in T.serial(head_dim // size):
            for d in T.vectorized(size):
                sums[d] = total[row, x * size + d] * fresh[0]
            for p in T.serial(pages):
                held = T.bind(table[s, page + p])
                # no further than the row sees: what lies there may be no number, and 0 · NaN is NaN
                for j in T.serial(T.max(T.min(seen[0] - p * PAGE, PAGE), 0)):
                    for d in T.vectorized(size):
                        sums[d] = (
                            sums[d]
                            + scores[u, p * PAGE + j]
                            * T.Cast("float32", values[layer, held, h, j, x * size + d])
                        )
            for d in T.vectorized(size):
                total[row, x * size + d] = sums[d]

    return gather


def _ask(rows: int, columns: int, dtype: str):
    """Return how to ask for a head's (rows, columns) of a page."""
    line = LINE // np.dtype(dtype).itemsize  # numbers
    lines = -(-rows * columns // line)

    @T.inline
    def ask(held, layer, page, h):
        for part in T.unroll(-(-lines // REACH)):
            for i in T.unroll(min(lines, AHEAD)):
                first = (part * REACH + i) * line
                T.evaluate(
                    T.call_llvm_intrin(
                        *("void", "llvm.prefetch"),
                        T.address_of(held[layer, page, h, first // columns, first % columns]),
                        *(0, 3, 1),
                    )
                )

    return ask


def run_of(
    heads: int, group: int, head_dim: int, tile: int, rules: Scores, dtype: str, ahead: bool
):
    """Return the step of `attend`: `tile` rows, from `first` on, over a run of pages of `dtype`. With
    `ahead` pages are asked for before they are needed.

    What it updates of the rows' state: peak (rows,), the largest score; weight (rows, PAGE), the sum
    of weights by slot; total (rows, D), the weighted sum of values.
    """
    parts, rounded = divisor(head_dim, max(SUMS // tile, 1)), EXPONENTS[dtype] > 0
    score, gather = _score(head_dim, tile, parts, rounded), _gather(head_dim, rounded)
    adjust = adjustment(rules, heads, group, RUN)
    ask_keys = _ask(head_dim + EXPONENTS[dtype], PAGE, dtype)
    ask_values = _ask(PAGE, head_dim, dtype)

    @T.inline
    def run(
        queries,
        keys,
        values,
        table,
        s,
        layer,
        h,
        total,
        peak,
        weight,
        first,
        page,
        pages,
        position,
        last,
    ):
        """Take rows first .. first + tile through so many pages; `position` is that of row 0, `last`
        the last column of the table."""
        scores = T.alloc_buffer((tile, RUN * PAGE), "float32")
        products = T.alloc_buffer((parts, tile, PAGE), "float32")
        top = T.alloc_buffer((PAGE,), "float32")
        fresh = T.alloc_buffer((2,), "float32")
        slots = T.alloc_buffer((PAGE,), "int32")
        seen = T.alloc_buffer((1,), "int32")  # positions of the run that the row sees
        for j in T.vectorized(PAGE):
            slots[j] = T.Cast("int32", j)
        for p in T.serial(pages):
            held = T.bind(table[s, page + p])
            if ahead:
                ask_keys(keys, layer, table[s, T.min(page + p + 1, last)], h)
                ask_values(values, layer, held, h)
            score(scores, products, queries, keys, layer, held, h, first, p)
        for u in T.serial(tile):
            row = T.bind(first + u)
            seen[0] = T.min(position + row // group + 1 - page * PAGE, pages * PAGE)
            adjust(scores, slots, position + row // group - page * PAGE, h, row, u)
            _soften(scores, top, slots, seen, fresh, peak, weight, row, u)
            gather(
                *(total, scores, seen, fresh, keys, values, table, s, layer, h, row, u, page, pages)
            )

    return run


REFERENCES: dict[str, object] = {}  # no operator of its own: a part of `attend`
