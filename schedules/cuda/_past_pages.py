"""How a warp attends to pages of the past, one at a time (`attend_parts.py`).

Keys: 4 lanes hold the 16 positions of a page, 8 of them one dimension each, so that a load of a warp is
512 bytes that lie side by side; sums go across the warp. Values: the lanes hold the dimensions, and take
the weight of each position from the lane that has it. A warp keeps a running maximum of its own (online
softmax). Values are asked for before the keys are used.
"""

from tvm.script import tirx as T

from shiftadd_tvm.ops.activation import capped
from shiftadd_tvm.ops.attend_parts import window_of
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.heads import Heads
from shiftadd_tvm.ops.scores import LOWEST, Scores, alibi_slope
from shiftadd_tvm.schedules.cuda._instructions import (
    ADD_FLOATS_ACROSS,
    LOAD16_WRITTEN,
    MAX_FLOATS_ACROSS,
    TAKE_FLOAT,
)
from shiftadd_tvm.schedules.cuda._new_token import WARPS

STEP = 8  # dimensions of keys that a warp loads at once
WIDE = 4  # numbers of one load
HELD = 16  # loads of keys, or of values, before the first is used
SPAN = 32 * WIDE  # dimensions of values that a warp loads at once


def _score(tile: int, head_dim: int):
    """Return how a warp sums q · k of a page: s[g, c] is of query head g, position 4 (lane % 4) + c."""
    steps = -(-head_dim // STEP)

    @T.inline
    def score(s, k, query, keys, layer, held, h, lane):
        for at in T.unroll(tile * WIDE):
            s[at] = T.float32(0)
        for turn in T.unroll(-(-steps // HELD)):
            for i in T.unroll(min(steps, HELD)):
                d = T.meta_var((turn * HELD + i) * STEP + lane // 4)
                if d < head_dim:
                    place = T.address_of(keys[layer, held, h, d, lane % 4 * WIDE])
                    T.evaluate(LOAD16_WRITTEN(T.address_of(k[i * WIDE]), place))
            for i in T.unroll(min(steps, HELD)):
                d = T.meta_var((turn * HELD + i) * STEP + lane // 4)
                if d < head_dim:
                    for g, c in T.grid(tile, WIDE):
                        s[g * WIDE + c] = s[g * WIDE + c] + query[g * head_dim + d] * k[i * WIDE + c]
        for at, j in T.grid(tile * WIDE, 3):
            T.evaluate(ADD_FLOATS_ACROSS(T.address_of(s[at]), T.uint32(WIDE) << T.Cast("uint32", j)))

    return score


def _soften(tile: int, heads: int, rules: Scores):
    """Return how scores of a page become weights; what came before is rescaled by fresh[g]."""
    cap, alibi, soft, window = rules.cap, rules.alibi, rules.cap > 0, window_of(rules)

    @T.inline
    def soften(s, peak, weight, fresh, v, head, page, own, lane):
        for g in T.unroll(tile):
            v[0] = T.float32(LOWEST)
            for c in T.unroll(WIDE):
                position = T.meta_var(page * PAGE + lane % 4 * WIDE + c)
                if soft:
                    s[g * WIDE + c] = capped(s[g * WIDE + c], cap)
                if alibi:
                    s[g * WIDE + c] = s[g * WIDE + c] + alibi_slope(head + g, heads) * T.Cast(
                        "float32", position - own
                    )
                seen = T.meta_var(T.And(position < own, position > own - window))
                s[g * WIDE + c] = T.Select(seen, s[g * WIDE + c], T.float32(LOWEST))
                v[0] = T.max(v[0], s[g * WIDE + c])
            for j in T.unroll(2):
                T.evaluate(MAX_FLOATS_ACROSS(T.address_of(v[0]), T.uint32(1) << T.Cast("uint32", j)))
            v[0] = T.max(peak[g], v[0])
            fresh[g] = exp(peak[g] - v[0])
            peak[g] = v[0]
            weight[g] = weight[g] * fresh[g]
            for c in T.unroll(WIDE):
                s[g * WIDE + c] = exp(s[g * WIDE + c] - peak[g])
                weight[g] = weight[g] + s[g * WIDE + c]

    return soften


def _load(head_dim: int, rules: Scores):
    """Return how a lane loads SPAN dimensions of the values of a page; what nobody sees, which may be no
    number, is 0."""
    window, wide = window_of(rules), head_dim % WIDE == 0

    @T.inline
    def load(x, values, layer, held, h, page, own, span, lane):
        d = T.bind(span * SPAN + lane * WIDE)
        for j in T.unroll(PAGE):
            for c in T.unroll(WIDE):
                x[j * WIDE + c] = T.float32(0)
            position = T.meta_var(page * PAGE + j)
            if d < head_dim and position < own and position > own - window:
                if wide:
                    place = T.address_of(values[layer, held, h, j, d])
                    T.evaluate(LOAD16_WRITTEN(T.address_of(x[j * WIDE]), place))
                else:
                    for c in T.unroll(WIDE):
                        if d + c < head_dim:
                            x[j * WIDE + c] = values[layer, held, h, j, d + c]

    return load


def _gather(tile: int, spans: int):
    """Return how a warp adds the weighed values of a page, of SPAN dimensions."""

    @T.inline
    def gather(total, s, x, v, fresh, span):
        for g in T.unroll(tile):
            for c in T.unroll(WIDE):
                at = T.meta_var((g * spans + span) * WIDE + c)
                total[at] = total[at] * fresh[g]
            for j in T.unroll(PAGE):
                T.evaluate(
                    TAKE_FLOAT(T.address_of(v[0]), s[g * WIDE + j % WIDE], T.uint32(j // WIDE))
                )
                for c in T.unroll(WIDE):
                    at = T.meta_var((g * spans + span) * WIDE + c)
                    total[at] = total[at] + v[0] * x[j * WIDE + c]

    return gather


def _page(tile: int, spans: int, of: Heads, rules: Scores):
    """Return how a warp attends to a page."""
    heads, head_dim, group = of.query.heads, of.key.size, of.query.heads // of.key.heads
    score, soften = _score(tile, head_dim), _soften(tile, heads, rules)
    load, gather = _load(head_dim, rules), _gather(tile, spans)

    @T.inline
    def page_(
        total, peak, weight, s, k, x, v, fresh, query, keys, values, layer, held, head, page, own, lane
    ):
        h = T.meta_var(head // group)
        load(x, values, layer, held, h, page, own, 0, lane)
        score(s, k, query, keys, layer, held, h, lane)
        soften(s, peak, weight, fresh, v, head, page, own, lane)
        for span in T.unroll(spans):
            if span > 0:
                load(x, values, layer, held, h, page, own, span, lane)
            gather(total, s, x, v, fresh, span)

    return page_


def attend(tile: int, spans: int, of: Heads, rules: Scores):
    """Return how a warp attends to every WARPS-th page from `first` on, up to `behind`: it adds to total,
    peak and weight. Where a page lies is looked up before the last one is used; at (1,) has the first."""
    attend_page = _page(tile, spans, of, rules)

    @T.inline
    def attend_(
        total, peak, weight, v, at, query, keys, values, table, layer, i, head, first, behind, own, lane
    ):
        k = T.alloc_buffer((HELD * WIDE,), "float32", scope="local")
        x = T.alloc_buffer((PAGE * WIDE,), "float32", scope="local")
        scores = T.alloc_buffer((tile * WIDE,), "float32", scope="local")
        fresh = T.alloc_buffer((tile,), "float32", scope="local")
        for turn in T.serial((T.max(behind - first, 0) + WARPS - 1) // WARPS):
            page = T.bind(first + turn * WARPS)
            held = T.bind(at[0])
            at[0] = table[i, T.min(page + WARPS, own // PAGE)]
            attend_page(
                *(total, peak, weight, scores, k, x, v, fresh, query),
                *(keys, values, layer, held, head, page, own, lane),
            )

    return attend_
