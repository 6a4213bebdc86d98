"""The paged key/value cache, as plain tensors, and causal grouped-query attention over it.

    keys     float32 (layers, pages, kv_heads, D, PAGE)   a page's positions side by side
    values   float32 (layers, pages, kv_heads, PAGE, D)
    table    int32 (sequences, width)   page of each run of PAGE positions of a sequence
    length   int32 (sequences,)         positions in the cache before this call

`sequence` calls append n tokens to one sequence (prefill); otherwise token i belongs to sequence i
(decode). Both orders above make the inner loops vertical: scores over a page's positions, outputs
over the head's dimensions. Written as TIR: the loops end where the sequence does, which a tensor
expression cannot say.
"""

import math

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.shift import Array

PAGE = 16  # positions a page holds


LOWEST = -3.0e38  # below every score, and finite: exp of a difference stays defined


def _int64(name: str):
    return tirx.Var(name, "int64")


def positions(sequence: bool):
    """Return the TIR function length (s,) -> positions (n,) int32 of this call's tokens."""
    one = 1 if sequence else 0
    s, n = _int64("s"), _int64("n")

    @T.prim_func(s_tir=True, private=True)
    def positions(length: T.Buffer((s,), "int32"), out: T.Buffer((n,), "int32")):
        T.func_attr({"tirx.noalias": True, OP: "positions"})
        for i in T.serial(n):
            with T.sblock("positions"):
                v = T.axis.spatial(n, i)
                out[v] = length[v * (1 - one)] + T.Cast("int32", v * one)

    return positions


def append(kv_heads: int, head_dim: int, sequence: bool, columns: int = 0, start: int = 0):
    """Return the TIR function (keys, values, new keys, new values, table, length, layer) that writes
    this call's keys (n, kv_heads D) and values into the cache, in place; the values are kv_heads D
    of `columns` (0: no more than those) columns, from `start` on."""
    columns = columns or kv_heads * head_dim
    one = 1 if sequence else 0
    layers, pages, s, width, n = (_int64(name) for name in ("layers", "pages", "s", "width", "n"))

    @T.prim_func(s_tir=True, private=True)
    def append(
        keys: T.Buffer((layers, pages, kv_heads, head_dim, PAGE), "float32"),
        values: T.Buffer((layers, pages, kv_heads, PAGE, head_dim), "float32"),
        new_keys: T.Buffer((n, kv_heads * head_dim), "float32"),
        new_values: T.Buffer((n, columns), "float32"),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
    ):
        T.func_attr({"tirx.noalias": True, OP: "append"})
        for i, h, d in T.grid(n, kv_heads, head_dim):
            with T.sblock("append"):
                vi, vh, vd = T.axis.remap("SSS", [i, h, d])
                T.reads()  # which page is written depends on data: the block is opaque
                T.writes()
                position = T.bind(length[vi * (1 - one)] + T.Cast("int32", vi * one))
                page = T.bind(table[vi * (1 - one), position // PAGE])
                keys[layer, page, vh, vd, position % PAGE] = new_keys[vi, vh * head_dim + vd]
                values[layer, page, vh, position % PAGE, vd] = new_values[
                    vi, start + vh * head_dim + vd
                ]

    return append


def _steps(group: int, head_dim: int):
    """Return what `attend` does with one page: score its keys, soften the scores, gather its values."""
    scale = 1.0 / math.sqrt(head_dim)

    @T.inline
    def score(scores, queries, keys, i, layer, page, h):
        for g in T.unroll(group):
            for j in T.vectorized(PAGE):
                scores[g, j] = T.float32(0)
        for d in T.serial(head_dim):  # all heads together: their sums hide each other's latency
            for g in T.unroll(group):
                for j in T.vectorized(PAGE):
                    scores[g, j] = (
                        scores[g, j]
                        + queries[i, (h * group + g) * head_dim + d] * keys[layer, page, h, d, j]
                    )

    @T.inline
    def soften(scores, peak, weight, fresh, g, visible):
        fresh[0] = peak[g]
        for j in T.vectorized(PAGE):
            scores[g, j] = T.Select(j < visible, scores[g, j] * T.float32(scale), T.float32(LOWEST))
        for j in T.serial(PAGE):
            fresh[0] = T.max(fresh[0], scores[g, j])
        fresh[1] = exp(peak[g] - fresh[0])  # rescales what the earlier pages gave
        peak[g] = fresh[0]
        for j in T.vectorized(PAGE):
            scores[g, j] = T.Select(j < visible, exp(scores[g, j] - fresh[0]), T.float32(0))
        for j in T.vectorized(PAGE):
            weight[g, j] = weight[g, j] * fresh[1] + scores[g, j]

    @T.inline
    def gather(total, scores, fresh, values, layer, page, h, g):
        for d in T.vectorized(head_dim):
            total[g, d] = total[g, d] * fresh[1]
        for j in T.serial(PAGE):
            for d in T.vectorized(head_dim):
                total[g, d] = total[g, d] + scores[g, j] * values[layer, page, h, j, d]

    return score, soften, gather


def attend(heads: int, kv_heads: int, head_dim: int, sequence: bool):
    """Return the TIR function (queries (n, heads D), keys, values, table, length, layer, out).

    One pass over the pages with a running maximum (online softmax); the query heads of a key/value
    head go together, so each page is read once for them.
    """
    one, group = (1 if sequence else 0), heads // kv_heads
    score, soften, gather = _steps(group, head_dim)
    layers, pages, s, width, n = (_int64(name) for name in ("layers", "pages", "s", "width", "n"))

    @T.prim_func(s_tir=True, private=True)
    def attend(
        queries: T.Buffer((n, heads * head_dim), "float32"),
        keys: T.Buffer((layers, pages, kv_heads, head_dim, PAGE), "float32"),
        values: T.Buffer((layers, pages, kv_heads, PAGE, head_dim), "float32"),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
        out: T.Buffer((n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "attend"})
        for fused in T.parallel(n * kv_heads):
            with T.sblock("attend"):
                v = T.axis.spatial(n * kv_heads, fused)
                T.reads()
                T.writes()
                scores = T.alloc_buffer((group, PAGE), "float32", scope="local")
                total = T.alloc_buffer((group, head_dim), "float32", scope="local")
                peak = T.alloc_buffer((group,), "float32", scope="local")
                weight = T.alloc_buffer((group, PAGE), "float32", scope="local")  # by slot
                fresh = T.alloc_buffer((2,), "float32", scope="local")
                i = T.bind(v // kv_heads)
                h = T.bind(v % kv_heads)
                last = T.bind(length[i * (1 - one)] + T.Cast("int32", i * one))
                for g in T.serial(group):
                    peak[g] = T.float32(LOWEST)
                    for j in T.vectorized(PAGE):
                        weight[g, j] = T.float32(0)
                    for d in T.vectorized(head_dim):
                        total[g, d] = T.float32(0)
                for p in T.serial(last // PAGE + 1):
                    page = T.bind(table[i * (1 - one), p])
                    score(scores, queries, keys, i, layer, page, h)
                    for g in T.serial(group):
                        soften(scores, peak, weight, fresh, g, last + 1 - p * PAGE)
                        gather(total, scores, fresh, values, layer, page, h, g)
                for g in T.serial(group):
                    fresh[0] = T.float32(0)
                    for j in T.serial(PAGE):
                        fresh[0] = fresh[0] + weight[g, j]
                    for d in T.vectorized(head_dim):
                        out[i, (h * group + g) * head_dim + d] = total[g, d] / fresh[0]

    return attend


def _rows(table: Array, length: Array, n: int, sequence: bool) -> list[tuple[Array, int]]:
    """Return (page row, position) of each of the call's n tokens."""
    if sequence:
        return [(table[0], int(length[0]) + i) for i in range(n)]
    return [(table[i], int(length[i])) for i in range(n)]


def reference_positions(length: Array, n: int, sequence: bool) -> Array:
    """Return the positions (n,) int32 of this call's tokens."""
    return np.array([p for _, p in _rows(np.zeros((n, 1)), length, n, sequence)], np.int32)


def reference_append(
    keys: Array,
    values: Array,
    new_keys: Array,
    new_values: Array,
    table: Array,
    length: Array,
    layer: int,
    sequence: bool,
) -> None:
    """Write the call's keys and values into the cache, in place."""
    kv_heads, head_dim = keys.shape[2:4]
    for i, (row, position) in enumerate(_rows(table, length, len(new_keys), sequence)):
        page, slot = row[position // PAGE], position % PAGE
        keys[layer, page, :, :, slot] = new_keys[i].reshape(kv_heads, head_dim)
        values[layer, page, :, slot] = new_values[i].reshape(kv_heads, head_dim)


def reference_attend(
    queries: Array,
    keys: Array,
    values: Array,
    table: Array,
    length: Array,
    layer: int,
    sequence: bool,
) -> Array:
    """Return softmax(q k / sqrt(D)) v over each token's own past, float32 (n, heads D)."""
    kv_heads, head_dim = keys.shape[2:4]
    out = np.empty_like(queries)
    for i, (row, position) in enumerate(_rows(table, length, len(queries), sequence)):
        pages = row[: position // PAGE + 1]
        past_keys = keys[layer, pages].transpose(1, 0, 3, 2).reshape(kv_heads, -1, head_dim)
        past_values = values[layer, pages].transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)
        q = queries[i].reshape(kv_heads, -1, head_dim).astype(np.float64)
        scores = q @ past_keys[:, : position + 1].transpose(0, 2, 1) / math.sqrt(head_dim)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[i] = (weights @ past_values[:, : position + 1]).reshape(-1)
    return out


REFERENCES = {
    "positions": reference_positions,
    "append": reference_append,
    "attend": reference_attend,
}
