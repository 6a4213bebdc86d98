"""Attention of a decode step in parts, for GPUs: the pages that a token sees are cut into P runs, so that
one sequence keeps a whole GPU busy; what the runs found is joined afterwards.

    attend_parts   q, k, v of the tokens, the cache -> found (n, P, heads D), states (n, P, 2, heads)
    join           found, states                    -> attention (n, heads D)

q, k and v are what projections gave; heads of q and k are turned (`heads.rope`) where there are angles.
The cache, of float32, gets the new k and v (`attention.append`), and is attended to as it is then.

found holds the sums of exp(score - peak) · v over the positions of a part; states its peak, the largest
score, and the sum of exp(score - peak). Of a part without positions the peak is `LOWEST`, the sum 0, and
nothing is found: its numbers are not written. P is a constant, for a captured step is of one shape.
"""

import json
from dataclasses import asdict, astuple

import numpy as np
from tvm import te, tirx
from tvm.script import tirx as T

from shiftadd_tvm.ops import OP, attention, heads
from shiftadd_tvm.ops.activation import capped
from shiftadd_tvm.ops.attend import RULES
from shiftadd_tvm.ops.attention import PAGE, rows_of
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.heads import Heads, Layout
from shiftadd_tvm.ops.scores import LOWEST, Scores, alibi_slope, reference_scores
from shiftadd_tvm.ops.shift import Array

HEADS = "shiftadd.heads"  # attribute: where heads lie, as JSON, for schedules
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


def _seen(of: Heads, rules: Scores):
    """Return how a part's sums take in one position of the cache."""
    group, head_dim = of.query.heads // of.key.heads, of.key.size
    adjust = _adjustment(rules, of.query.heads)

    @T.inline
    def see(
        found, states, query, score, weight, keys, values, layer, held, position, own, i, part, h
    ):
        score[0] = T.float32(0)
        for d in T.serial(head_dim):
            score[0] = score[0] + query[d] * keys[layer, held, h // group, d, position % PAGE]
        adjust(score, h, position - own)
        weight[0] = states[i, part, 0, h]
        states[i, part, 0, h] = T.max(weight[0], score[0])
        weight[0] = exp(weight[0] - states[i, part, 0, h])
        score[0] = exp(score[0] - states[i, part, 0, h])
        states[i, part, 1, h] = states[i, part, 1, h] * weight[0] + score[0]
        for d in T.serial(head_dim):
            found[i, part, h * head_dim + d] = (
                found[i, part, h * head_dim + d] * weight[0]
                + score[0] * values[layer, held, h // group, position % PAGE, d]
            )

    return see


def attend_parts(of: Heads, rules: Scores):
    """Return the TIR function (keys, values, q, k, v, angles where heads are turned, table, length,
    layer, found, states) that writes the cache in place; token i belongs to sequence i."""
    count, window = parts(of.key.heads), window_of(rules)
    see, scale, heads_ = _seen(of, rules), rules.scale, of.query.heads
    (width_q, width_k, width_v), kv_heads, head_dim = of.columns, of.key.heads, of.key.size
    layers, pages, s, width, n = (
        tirx.Var(name, "int64") for name in ("layers", "pages", "s", "width", "n")
    )

    @T.prim_func(s_tir=True, private=True)
    def attend(
        keys: T.Buffer((layers, pages, kv_heads, head_dim, PAGE), "float32"),
        values: T.Buffer((layers, pages, kv_heads, PAGE, head_dim), "float32"),
        given_q: T.Buffer((n, width_q), "float32"),
        given_k: T.Buffer((n, width_k), "float32"),
        given_v: T.Buffer((n, width_v), "float32"),
        angles: T.Buffer((n, 2, of.angles), "float32"),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
        found: T.Buffer((n, count, heads_ * head_dim), "float32"),
        states: T.Buffer((n, count, 2, heads_), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "attend_parts"})
        for i, h, d in T.grid(n, kv_heads, head_dim):
            with T.sblock("write"):
                vi, vh, vd = T.axis.remap("SSS", [i, h, d])
                T.reads()  # which page is written depends on data: the blocks are opaque
                T.writes()
                slot = T.bind(length[vi] % PAGE)
                page = T.bind(table[vi, length[vi] // PAGE])
                keys[layer, page, vh, vd, slot] = heads.turned(given_k, angles, of.key, vi, vh, vd)
                values[layer, page, vh, slot, vd] = given_v[vi, of.value.column(vh, vd)]
        for i, part, h in T.grid(n, count, heads_):
            with T.sblock("attend"):
                vi, vp, vh = T.axis.remap("SSS", [i, part, h])
                T.reads()
                T.writes()
                query = T.alloc_buffer((head_dim,), "float32")
                score = T.alloc_buffer((1,), "float32")
                weight = T.alloc_buffer((1,), "float32")
                own = T.bind(length[vi])
                start, end = T.meta_var(pages_of(T.Cast("int32", vp), own, rules, count))
                states[vi, vp, 0, vh] = T.float32(LOWEST)
                states[vi, vp, 1, vh] = T.float32(0)
                for d in T.serial(head_dim):
                    found[vi, vp, vh * head_dim + d] = T.float32(0)
                    query[d] = heads.turned(given_q, angles, of.query, vi, vh, d) * T.float32(scale)
                for at in T.serial(T.max(end - start, 0) * PAGE):
                    position = T.bind(start * PAGE + at)
                    if position <= own and position > own - window:
                        held = T.bind(table[vi, position // PAGE])
                        see(
                            *(found, states, query, score, weight, keys, values),
                            *(layer, held, position, own, vi, vp, vh),
                        )

    marks = {RULES: json.dumps(astuple(rules)), HEADS: json.dumps(asdict(of))}
    return with_parameters(attend, of).with_attrs(marks)


def with_parameters(function: tirx.PrimFunc, of: Heads) -> tirx.PrimFunc:
    """Return the function without the parameter for angles where there are none."""
    kept = [p for p in function.params if of.angles or p.name != "angles"]
    return tirx.PrimFunc(kept, function.body, function.ret_type, function.attrs)


def heads_of(function: tirx.PrimFunc) -> Heads:
    """Return where the heads of `attend_parts` lie."""
    found = json.loads(str(function.attrs[HEADS]))
    query, key, value = (Layout(**found[name]) for name in ("query", "key", "value"))
    return Heads(query, key, value, tuple(found["columns"]), found["angles"])


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
    keys: Array,
    values: Array,
    given: tuple[Array, Array, Array],
    angles: Array | None,
    table: Array,
    length: Array,
    layer: int,
    of: Heads,
    rules: Scores,
) -> tuple[Array, Array]:
    """Write the call's keys and values into the cache, in place; return found and states; a part without
    positions has zeros."""
    taken = [
        heads.reference_take_heads(x, at) if angles is None else heads.reference_rope(x, angles, at)
        for x, at in zip(given[:2], (of.query, of.key), strict=True)
    ]
    new_values = heads.reference_take_heads(given[2], of.value)
    attention.reference_append(keys, values, taken[1], new_values, table, length, layer, False)
    return _reference_parts(taken[0], keys, values, table, length, layer, rules)


def _reference_parts(
    queries: Array,
    keys: Array,
    values: Array,
    table: Array,
    length: Array,
    layer: int,
    rules: Scores,
) -> tuple[Array, Array]:
    kv_heads, head_dim = keys.shape[2:4]
    n, heads_, count = len(queries), queries.shape[1] // head_dim, parts(kv_heads)
    found = np.zeros((n, count, heads_, head_dim), np.float32)
    states = np.zeros((n, count, 2, heads_), np.float32)
    states[:, :, 0] = LOWEST
    for i, (row, own) in enumerate(rows_of(table, length, n, False)):
        pages = row[: own // PAGE + 1]
        past = keys[layer, pages].transpose(1, 0, 3, 2).reshape(kv_heads, -1, head_dim)
        q = queries[i].reshape(kv_heads, -1, head_dim).astype(np.float64)
        products = (q @ past[:, : own + 1].transpose(0, 2, 1)).reshape(heads_, own + 1)
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
            by_head = np.repeat(seen[:, at], heads_ // kv_heads, axis=0)
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
