"""Attention of a decode step in parts, for GPUs: the pages that a token sees are cut into P runs, so that
one sequence keeps a whole GPU busy; what the runs found is joined afterwards.

    attend_parts   queries, the cache -> found (n, P, heads D), states (n, P, 2, heads)
    join           found, states      -> attention (n, heads D)

found holds the sums of exp(score - peak) · v over the positions of a part; states its peak, the largest
score, and the sum of exp(score - peak). Of a part without positions the peak is `LOWEST`, the sum 0, and
nothing is found: its numbers are not written. P is a constant, for a captured step is of one shape.
"""

import json
from dataclasses import astuple

import numpy as np
from tvm import te, tirx
from tvm.script import tirx as T

from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.activation import capped
from shiftadd_tvm.ops.attend import RULES
from shiftadd_tvm.ops.attention import PAGE, rows_of
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.scores import LOWEST, Scores, alibi_slope, reference_scores
from shiftadd_tvm.ops.shift import Array

BLOCKS = 256  # of threads, about, that one sequence shall fill
MOST = 16  # parts: whoever joins them reads all
LEAST = 4  # pages of a part


def parts(kv_heads: int) -> int:
    """Return P: a power of two with which the key/value heads of one sequence fill a GPU."""
    wanted = max(BLOCKS // kv_heads, 1)
    return min(1 << (wanted.bit_length() - 1), MOST)


def pages_of(part, position, rules: Scores, count: int):
    """Return the first page of a part of `count`, and the one behind its last, for the token at a
    position; no page where they are not in order."""
    first, end = rules.first_page(position), position // PAGE + 1
    each = T.max((end - first + count - 1) // count, LEAST)
    start = first + part * each
    return start, T.min(start + each, end)


def window_of(rules: Scores) -> int:
    """Return how many positions a token sees: more than there are where the rules set no bound."""
    return rules.window or 1 << 30


def _adjustment(rules: Scores, heads: int):
    """Return what changes the score of a head for a position at `distance`, negative in the past."""
    cap, alibi, soft = rules.cap, rules.alibi, rules.cap > 0

    @T.inline
    def adjust(score, head, distance):
        if soft:
            score[0] = capped(score[0], cap)
        if alibi:
            score[0] = score[0] + alibi_slope(head, heads) * T.Cast("float32", distance)

    return adjust


def attend_parts(heads: int, kv_heads: int, head_dim: int, rules: Scores):
    """Return the TIR function (queries (n, heads D), keys, values, table, length, layer, found, states)
    over a cache of float32; token i belongs to sequence i."""
    group, count, window = heads // kv_heads, parts(kv_heads), window_of(rules)
    adjust, scale = _adjustment(rules, heads), rules.scale
    layers, pages, s, width, n = (
        tirx.Var(name, "int64") for name in ("layers", "pages", "s", "width", "n")
    )

    @T.prim_func(s_tir=True, private=True)
    def attend(
        queries: T.Buffer((n, heads * head_dim), "float32"),
        keys: T.Buffer((layers, pages, kv_heads, head_dim, PAGE), "float32"),
        values: T.Buffer((layers, pages, kv_heads, PAGE, head_dim), "float32"),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
        found: T.Buffer((n, count, heads * head_dim), "float32"),
        states: T.Buffer((n, count, 2, heads), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "attend_parts"})
        for i, part, h in T.grid(n, count, heads):
            with T.sblock("attend"):
                vi, vp, vh = T.axis.remap("SSS", [i, part, h])
                T.reads()
                T.writes()
                score = T.alloc_buffer((1,), "float32")
                weight = T.alloc_buffer((1,), "float32")
                own = T.bind(length[vi])
                start, end = T.meta_var(pages_of(T.Cast("int32", vp), own, rules, count))
                states[vi, vp, 0, vh] = T.float32(LOWEST)
                states[vi, vp, 1, vh] = T.float32(0)
                for d in T.serial(head_dim):
                    found[vi, vp, vh * head_dim + d] = T.float32(0)
                for at in T.serial(T.max(end - start, 0) * PAGE):
                    position = T.bind(start * PAGE + at)
                    if position <= own and position > own - window:
                        held = T.bind(table[vi, position // PAGE])
                        score[0] = T.float32(0)
                        for d in T.serial(head_dim):
                            score[0] = score[0] + (
                                queries[vi, vh * head_dim + d]
                                * T.float32(scale)
                                * keys[layer, held, vh // group, d, position % PAGE]
                            )
                        adjust(score, vh, position - own)
                        weight[0] = states[vi, vp, 0, vh]
                        states[vi, vp, 0, vh] = T.max(weight[0], score[0])
                        weight[0] = exp(weight[0] - states[vi, vp, 0, vh])
                        score[0] = exp(score[0] - states[vi, vp, 0, vh])
                        states[vi, vp, 1, vh] = states[vi, vp, 1, vh] * weight[0] + score[0]
                        for d in T.serial(head_dim):
                            found[vi, vp, vh * head_dim + d] = (
                                found[vi, vp, vh * head_dim + d] * weight[0]
                                + score[0] * values[layer, held, vh // group, position % PAGE, d]
                            )

    return attend.with_attr(RULES, json.dumps(astuple(rules)))


def join(found, states):
    """Return the attention (n, heads D) of what parts found."""
    n, count, width = found.shape[0], int(found.shape[1]), int(found.shape[2])
    heads = int(states.shape[3])
    head_dim = width // heads
    part = lambda: te.reduce_axis((0, count), "part")
    p, q, r = part(), part(), part()
    highest = te.compute(
        (n, heads), lambda i, h: te.max(states[i, p, 0, h], axis=p), name="highest"
    )
    share = te.compute(
        (n, count, heads), lambda i, p, h: exp(states[i, p, 0, h] - highest[i, h]), name="share"
    )
    total = te.compute(
        (n, heads), lambda i, h: te.sum(share[i, q, h] * states[i, q, 1, h], axis=q), name="total"
    )

    def weighed(i, p, c):
        # what a part without positions found was never written
        there = states[i, p, 1, c // head_dim] != tirx.const(0, "float32")
        value = share[i, p, c // head_dim] * found[i, p, c]
        return tirx.if_then_else(there, value, tirx.const(0, "float32"))

    joined = te.compute((n, width), lambda i, c: te.sum(weighed(i, r, c), axis=r), name="joined")
    return te.compute((n, width), lambda i, c: joined[i, c] / total[i, c // head_dim], name="y")


def reference_attend_parts(
    queries: Array,
    keys: Array,
    values: Array,
    table: Array,
    length: Array,
    layer: int,
    rules: Scores,
) -> tuple[Array, Array]:
    """Return found and states; a part without positions has zeros."""
    kv_heads, head_dim = keys.shape[2:4]
    n, heads, count = len(queries), queries.shape[1] // head_dim, parts(kv_heads)
    found = np.zeros((n, count, heads, head_dim), np.float32)
    states = np.zeros((n, count, 2, heads), np.float32)
    states[:, :, 0] = LOWEST
    for i, (row, own) in enumerate(rows_of(table, length, n, False)):
        pages = row[: own // PAGE + 1]
        past = keys[layer, pages].transpose(1, 0, 3, 2).reshape(kv_heads, -1, head_dim)
        q = queries[i].reshape(kv_heads, -1, head_dim).astype(np.float64)
        products = (q @ past[:, : own + 1].transpose(0, 2, 1)).reshape(heads, own + 1)
        scores = reference_scores(products, rules)
        seen = values[layer, pages].transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)
        first = max(own - window_of(rules) + 1, 0) // PAGE
        each = max(-(-(len(pages) - first) // count), LEAST) * PAGE
        for part in range(count):
            at = slice(first * PAGE + part * each, min(first * PAGE + (part + 1) * each, own + 1))
            if at.start >= at.stop:
                continue
            peak = scores[:, at].max(axis=1)
            weights = np.exp(scores[:, at] - peak[:, None])
            by_head = np.repeat(seen[:, at], heads // kv_heads, axis=0)
            found[i, part] = (weights[:, None] @ by_head)[:, 0]
            states[i, part] = peak, weights.sum(axis=1)
    return found.reshape(n, count, -1), states


def reference_join(found: Array, states: Array) -> Array:
    """Return the attention (n, heads D) of what parts found, float32."""
    n, count, _, heads = states.shape
    share = np.exp(states[:, :, 0] - states[:, :, 0].max(axis=1, keepdims=True).astype(np.float64))
    weighed = share[..., None] * found.reshape(n, count, heads, -1)
    total = (share * states[:, :, 1]).sum(axis=1)
    return (weighed.sum(axis=1) / total[..., None]).reshape(n, -1).astype(np.float32)


REFERENCES = {"attend_parts": reference_attend_parts, "join": reference_join}
