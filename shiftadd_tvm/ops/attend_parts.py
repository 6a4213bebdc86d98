"""Attention of a decode step in parts, for GPUs: the pages that a token sees are cut into P runs, so that
one sequence keeps a whole GPU busy; what the runs found is joined afterwards.

    attend_parts   q, k, v of the tokens, the cache -> found (n, P, heads D), states (n, P, 2, heads)
    join           found, states                    -> attention (n, heads D)

q, k and v are what projections gave; heads of q and k are normalized one by one (`heads.head_norm`)
where there is an epsilon, and turned (`heads.rope`) where there are angles. The cache, of float32, gets
the new k and v (`attention.append`), and is attended to as it is then.

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
from shiftadd_tvm.ops.elementwise import exp, inverse_of
from shiftadd_tvm.ops.heads import Heads, Layout, partner_of, rotated
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


def _readied(of: Heads):
    """Return how a head comes out of a projection: normalized into head[0] (D,), turned into head[1]."""
    size, half, normed, epsilon = of.key.size, of.angles, of.epsilon is not None, of.epsilon or 0.0

    @T.inline
    def ready(head, root, given, layout, weight, angles, i, h):
        root[0] = T.float32(0)
        for d in T.serial(size):
            head[0, d] = given[i, layout.column(h, d)]
            root[0] = root[0] + head[0, d] * head[0, d]
        for d in T.serial(size):
            if normed:
                head[0, d] = head[0, d] * inverse_of(root[0], size, epsilon) * weight[d]
            head[1, d] = head[0, d]
        if half > 0:
            for d in T.serial(size):
                pair = T.meta_var((head[0, d], head[0, partner_of(d, half)]))
                angle = T.meta_var((angles[i, 0, d % half], angles[i, 1, d % half]))
                head[1, d] = rotated(pair, angle, d, half, size)

    return ready


def _written(of: Heads):
    """Return how a new key and value come into a page of the cache."""
    size, ready = of.key.size, _readied(of)

    @T.inline
    def write(keys, values, given_k, given_v, norm, angles, layer, page, own, i, h):
        key = T.alloc_buffer((2, size), "float32")
        root = T.alloc_buffer((1,), "float32")
        ready(key, root, given_k, of.key, norm, angles, i, h)
        for d in T.serial(size):
            keys[layer, page, h, d, own % PAGE] = key[1, d]
            values[layer, page, h, own % PAGE, d] = given_v[i, of.value.column(h, d)]

    return write


def _seen(of: Heads, rules: Scores):
    """Return how a part's sums take in one position of the cache."""
    group, head_dim, scale = of.query.heads // of.key.heads, of.key.size, rules.scale
    adjust = _adjustment(rules, of.query.heads)

    @T.inline
    def see(
        found, states, query, score, weight, keys, values, layer, held, position, own, i, part, h
    ):
        score[0] = T.float32(0)
        for d in T.serial(head_dim):
            score[0] = score[0] + (
                query[1, d] * T.float32(scale) * keys[layer, held, h // group, d, position % PAGE]
            )
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
    """Return the TIR function (keys, values, q, k, v, weights of norms, angles, table, length, layer,
    found, states) that writes the cache in place; token i belongs to sequence i."""
    count, window = parts(of.key.heads), window_of(rules)
    see, ready, write, heads_ = _seen(of, rules), _readied(of), _written(of), of.query.heads
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
        norm_q: T.Buffer((head_dim,), "float32"),
        norm_k: T.Buffer((head_dim,), "float32"),
        angles: T.Buffer((n, 2, of.angles), "float32"),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
        found: T.Buffer((n, count, heads_ * head_dim), "float32"),
        states: T.Buffer((n, count, 2, heads_), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "attend_parts"})
        for i, h in T.grid(n, kv_heads):
            with T.sblock("write"):
                vi, vh = T.axis.remap("SS", [i, h])
                T.reads()  # which page is written depends on data: the blocks are opaque
                T.writes()
                page = T.bind(table[vi, length[vi] // PAGE])
                write(keys, values, given_k, given_v, norm_k, angles, layer, page, length[vi], vi, vh)
        for i, part, h in T.grid(n, count, heads_):
            with T.sblock("attend"):
                vi, vp, vh = T.axis.remap("SSS", [i, part, h])
                T.reads()
                T.writes()
                query = T.alloc_buffer((2, head_dim), "float32")
                score = T.alloc_buffer((1,), "float32")
                weight = T.alloc_buffer((1,), "float32")
                own = T.bind(length[vi])
                start, end = T.meta_var(pages_of(T.Cast("int32", vp), own, rules, count))
                states[vi, vp, 0, vh] = T.float32(LOWEST)
                states[vi, vp, 1, vh] = T.float32(0)
                for d in T.serial(head_dim):
                    found[vi, vp, vh * head_dim + d] = T.float32(0)
                ready(query, score, given_q, of.query, norm_q, angles, vi, vh)
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
    """Return the function without the parameters of norms, or of angles, where there are none."""
    there = {"angles": of.angles > 0} | dict.fromkeys(("norm_q", "norm_k"), of.epsilon is not None)
    kept = [p for p in function.params if there.get(p.name, True)]
    return tirx.PrimFunc(kept, function.body, function.ret_type, function.attrs)


def heads_of(function: tirx.PrimFunc) -> Heads:
    """Return where the heads of `attend_parts` lie."""
    found = json.loads(str(function.attrs[HEADS]))
    query, key, value = (Layout(**found[name]) for name in ("query", "key", "value"))
    return Heads(query, key, value, tuple(found["columns"]), found["angles"], found["epsilon"])


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
    norms: tuple[Array, Array] | None,
    angles: Array | None,
    table: Array,
    length: Array,
    layer: int,
    of: Heads,
    rules: Scores,
) -> tuple[Array, Array]:
    """Write the call's keys and values into the cache, in place; return found and states; a part without
    positions has zeros."""
    queries, new_keys = (
        reference_ready(given[side], layout, norms and norms[side], angles, of.epsilon)
        for side, layout in enumerate((of.query, of.key))
    )
    new_values = heads.reference_take_heads(given[2], of.value)
    attention.reference_append(keys, values, new_keys, new_values, table, length, layer, False)
    return _reference_parts(queries, keys, values, table, length, layer, rules)


def reference_ready(
    given: Array, layout: Layout, weight: Array | None, angles: Array | None, epsilon: float | None
) -> Array:
    """Return heads out of a projection (n, heads D), normalized and turned."""
    taken, alone = heads.reference_take_heads(given, layout), Layout(layout.heads, layout.size)
    if weight is not None and epsilon is not None:
        taken = heads.reference_head_norm(taken, weight, epsilon, alone)
    return taken if angles is None else heads.reference_rope(taken, angles, alone)


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
