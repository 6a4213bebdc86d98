"""attend: causal grouped-query attention over the paged cache of `ops/attention.py`.

One pass over runs of pages with a running maximum (online softmax, `attend_run.py`), by rows: a row is
one query head of one token, and the rows of a key/value head share its pages.

    prefill   a unit of work is `TOKENS` tokens of a key/value head: their rows score a page together
    decode    a unit is some pages of one token and key/value head: what the units of a token found is
              put together at the end, so that long contexts keep all threads busy

Scores are vertical over a page's positions, outputs over the head's dimensions; the accumulators of
both are small enough for registers. Written as TIR: the loops end where the sequence does.
"""

import functools
import json
import math
from dataclasses import astuple

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.attend_run import RUN, divisor, run_of
from shiftadd_tvm.ops.attention import EXPONENTS, PAGE, reference_held, rows_of
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.scores import LOWEST, Scores, reference_scores
from shiftadd_tvm.ops.shift import Array

RULES = "shiftadd.rules"  # attribute: [sequence, scale, window, cap, alibi], as JSON
TOKENS = 16  # of a unit of prefill
TILE = 4  # rows at most that score a page together: their sums fill the registers
UNITS = 64  # of decode, about: enough for many threads, few enough to put together
LEAST = RUN  # pages of a unit of decode at least


def _int64(name: str):
    return tirx.Var(name, "int64")


@T.inline
def _begin(peak, weight, total, rows, head_dim):
    for r in T.serial(rows):
        peak[r] = T.float32(LOWEST)
        for j in T.vectorized(PAGE):
            weight[r, j] = T.float32(0)
        for d in T.vectorized(head_dim):
            total[r, d] = T.float32(0)


@T.inline
def _sum(fresh, weight, row):
    fresh[0] = T.float32(0)
    for j in T.serial(PAGE):
        fresh[0] = fresh[0] + weight[row, j]


def _prefill(heads: int, kv_heads: int, head_dim: int, rules: Scores, dtype: str):
    """Return `attend` of n tokens of one sequence."""
    group, scale, more = heads // kv_heads, rules.scale, EXPONENTS[dtype]
    rows, before, tile = TOKENS * group, rules.first_page, divisor(TOKENS * group, TILE)
    run = run_of(heads, group, head_dim, tile, rules, dtype, ahead=False)
    layers, pages, s, width, n = (_int64(name) for name in ("layers", "pages", "s", "width", "n"))
    units = -(-n // TOKENS)

    @T.prim_func(s_tir=True, private=True)
    def attend(
        queries: T.Buffer((n, heads * head_dim), "float32"),
        keys: T.Buffer((layers, pages, kv_heads, head_dim + more, PAGE), dtype),
        values: T.Buffer((layers, pages, kv_heads, PAGE, head_dim), dtype),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
        out: T.Buffer((n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "attend"})
        for fused in T.parallel(kv_heads * units):
            with T.sblock("attend"):
                v = T.axis.spatial(kv_heads * units, fused)
                T.reads()
                T.writes()
                scaled = T.alloc_buffer((rows, head_dim), "float32")
                total = T.alloc_buffer((rows, head_dim), "float32")
                peak = T.alloc_buffer((rows,), "float32")
                weight = T.alloc_buffer((rows, PAGE), "float32")
                fresh = T.alloc_buffer((1,), "float32")
                # truncated, not floored: floored ones by a symbol cost TVM a second of proofs
                h = T.bind(T.truncdiv(v, units))
                # units from both ends in turn: the later a token, the more it sees, and threads get
                # units that lie side by side
                at = T.bind(T.truncmod(v, units))
                unit = T.bind(T.if_then_else(at % 2 == 0, at // 2, units - 1 - at // 2))
                held = T.bind(T.Cast("int32", T.min(n - unit * TOKENS, TOKENS)))  # tokens
                first = T.bind(length[0] + T.Cast("int32", unit) * TOKENS)
                end = T.bind((first + held - 1) // PAGE + 1)  # pages
                _begin(peak, weight, total, rows, head_dim)
                for r in T.serial(rows):
                    token = T.bind(unit * TOKENS + T.min(r // group, held - 1))
                    for d in T.vectorized(head_dim):
                        scaled[r, d] = queries[
                            token, (h * group + r % group) * head_dim + d
                        ] * T.float32(scale)
                for p in T.serial((end - before(first) + RUN - 1) // RUN):
                    for t in T.serial((held * group + tile - 1) // tile):
                        run(
                            *(scaled, keys, values, table, 0, layer, h, total, peak, weight),
                            *(t * tile, before(first) + p * RUN),
                            *(T.min(end - before(first) - p * RUN, RUN), first, 0),
                        )
                for r in T.serial(held * group):
                    _sum(fresh, weight, r)
                    for d in T.vectorized(head_dim):
                        out[unit * TOKENS + r // group, (h * group + r % group) * head_dim + d] = (
                            total[r, d] / fresh[0]
                        )

    return attend


@T.inline
def _divide(size, length, n, rows, before):
    """Set size[0] to the pages of the sequence that sees most, size[1] to those of a unit."""
    size[0] = 1
    for i in T.serial(n):
        size[0] = T.max(size[0], length[i] // PAGE + 1 - before(length[i]))
    most = T.bind(T.max(UNITS // T.Cast("int32", rows), 1))
    size[1] = T.max((size[0] + most - 1) // most, LEAST)


def _decode(heads: int, kv_heads: int, head_dim: int, rules: Scores, dtype: str):
    """Return `attend` of one token of each of n sequences."""
    group, scale, more = heads // kv_heads, rules.scale, EXPONENTS[dtype]
    tile, before = divisor(group, TILE), rules.first_page
    run = run_of(heads, group, head_dim, tile, rules, dtype, ahead=True)
    layers, pages, s, width, n = (_int64(name) for name in ("layers", "pages", "s", "width", "n"))
    room = n * kv_heads + UNITS

    @T.prim_func(s_tir=True, private=True)
    def attend(
        queries: T.Buffer((n, heads * head_dim), "float32"),
        keys: T.Buffer((layers, pages, kv_heads, head_dim + more, PAGE), dtype),
        values: T.Buffer((layers, pages, kv_heads, PAGE, head_dim), dtype),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
        out: T.Buffer((n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "attend"})
        with T.sblock("attend"):
            T.reads()
            T.writes()
            found = T.alloc_buffer((room, group, head_dim), "float32")  # by unit
            sums = T.alloc_buffer((room, group), "float32")
            peaks = T.alloc_buffer((room, group), "float32")
            size = T.alloc_buffer((2,), "int32")
            _divide(size, length, n, n * kv_heads, before)
            each = T.bind(size[1])
            parts = T.bind((size[0] + each - 1) // each)
            for v in T.parallel(kv_heads * parts * T.Cast("int32", n)):
                scaled = T.alloc_buffer((group, head_dim), "float32")
                total = T.alloc_buffer((group, head_dim), "float32")
                peak = T.alloc_buffer((group,), "float32")
                weight = T.alloc_buffer((group, PAGE), "float32")
                fresh = T.alloc_buffer((1,), "float32")
                i = T.bind(v % T.Cast("int32", n))
                h = T.bind(v // T.Cast("int32", n) // parts)
                start = T.bind(before(length[i]) + v // T.Cast("int32", n) % parts * each)
                end = T.bind(T.min(start + each, length[i] // PAGE + 1))
                _begin(peak, weight, total, group, head_dim)
                for g in T.serial(group):
                    for d in T.vectorized(head_dim):
                        scaled[g, d] = queries[i, (h * group + g) * head_dim + d] * T.float32(scale)
                for p in T.serial((T.max(end - start, 0) + RUN - 1) // RUN):
                    for t in T.serial(group // tile):
                        run(
                            *(scaled, keys, values, table, i, layer, h, total, peak, weight),
                            *(t * tile, start + p * RUN),
                            *(T.min(end - start - p * RUN, RUN), length[i], T.Cast("int32", width) - 1),
                        )
                for g in T.serial(group):
                    _sum(fresh, weight, g)
                    sums[v, g] = fresh[0]
                    peaks[v, g] = peak[g]
                    for d in T.vectorized(head_dim):
                        found[v, g, d] = total[g, d]
            for i, h, g in T.grid(n, kv_heads, group):
                _combine(found, sums, peaks, out, i, h, g, parts, n, group, head_dim)

    return attend


@T.inline
def _combine(found, sums, peaks, out, i, h, g, parts, n, group, head_dim):
    """Put together what the units of a head found: those without a position have weight 0."""
    total = T.alloc_buffer((head_dim,), "float32")
    state = T.alloc_buffer((2,), "float32")  # peak, weight
    state[0] = T.float32(LOWEST)
    state[1] = T.float32(0)
    for part in T.serial(parts):
        state[0] = T.max(state[0], peaks[(h * parts + part) * n + i, g])
    for d in T.vectorized(head_dim):
        total[d] = T.float32(0)
    for part in T.serial(parts):
        unit = T.bind((h * parts + part) * n + i)
        share = T.bind(exp(peaks[unit, g] - state[0]))
        state[1] = state[1] + share * sums[unit, g]
        for d in T.vectorized(head_dim):
            total[d] = total[d] + share * found[unit, g, d]
    for d in T.vectorized(head_dim):
        out[i, (h * group + g) * head_dim + d] = total[d] / state[1]


@functools.cache  # its inlined steps take half a second to parse
def attend(
    heads: int,
    kv_heads: int,
    head_dim: int,
    sequence: bool,
    rules: Scores | None = None,
    held: str = "float32",
):
    """Return the TIR function (queries (n, heads D), keys, values, table, length, layer, out) over a
    cache in the format `held`; without `rules` scores are q · k / sqrt(D)."""
    rules = rules or Scores(1.0 / math.sqrt(head_dim))
    function = (_prefill if sequence else _decode)(heads, kv_heads, head_dim, rules, held)
    return function.with_attr(RULES, json.dumps([sequence, *astuple(rules)]))


def reference_attend(
    queries: Array,
    keys: Array,
    values: Array,
    table: Array,
    length: Array,
    layer: int,
    sequence: bool,
    rules: Scores | None = None,
) -> Array:
    """Return softmax(scores) v over each token's own past, float32 (n, heads D)."""
    keys, values = reference_held(keys, values)
    kv_heads, head_dim = keys.shape[2:4]
    rules = rules or Scores(1.0 / math.sqrt(head_dim))
    out = np.empty_like(queries)
    for i, (row, position) in enumerate(rows_of(table, length, len(queries), sequence)):
        pages = row[: position // PAGE + 1]
        past_keys = keys[layer, pages].transpose(1, 0, 3, 2).reshape(kv_heads, -1, head_dim)
        past_values = values[layer, pages].transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)
        q = queries[i].reshape(kv_heads, -1, head_dim).astype(np.float64)
        products = q @ past_keys[:, : position + 1].transpose(0, 2, 1)
        scores = reference_scores(products.reshape(-1, position + 1), rules).reshape(products.shape)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[i] = (weights @ past_values[:, : position + 1]).reshape(-1)
    return out


REFERENCES = {"attend": reference_attend}
