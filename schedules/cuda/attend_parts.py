"""attend_parts on GPUs: a block of threads for a part of the pages, a page at a time for each warp.

Keys: 4 lanes hold the 16 positions of a page, 8 of them one dimension each, so that a load of a warp is
512 bytes that lie side by side; sums go across the warp. Values: the lanes hold the dimensions, and take
the weight of each position from the lane that has it. A warp keeps a running maximum of its own (online
softmax); warps meet once, at the end. Values are asked for before the keys are used.
"""

import functools
import json

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.activation import capped
from shiftadd_tvm.ops.attend import RULES
from shiftadd_tvm.ops.attend_parts import pages_of, parts, window_of
from shiftadd_tvm.ops.attend_run import divisor
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.scores import LOWEST, Scores, alibi_slope
from shiftadd_tvm.schedules.cuda._instructions import (
    ADD_FLOATS_ACROSS,
    LOAD16_WRITTEN,
    MAX_FLOATS_ACROSS,
    TAKE_FLOAT,
)

OPS = ("attend_parts",)
WARPS = 4
THREADS = 32 * WARPS
TILE = 8  # query heads at most, of a span, that a block scores together: more spill
STEP = 8  # dimensions of keys that a warp loads at once
WIDE = 4  # numbers of one load
HELD = 16  # loads of keys, or of values, before the first is used
SPAN = 32 * WIDE  # dimensions of values that a warp loads at once


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel for the sizes of the function."""
    function = sch.mod["main"]
    queries, keys = list(function.params)[:2]
    kv_heads, head_dim = (int(size) for size in keys.shape[2:4])
    rules = Scores(*json.loads(str(function.attrs[RULES])))
    return kernel(int(queries.shape[1]) // head_dim, kv_heads, head_dim, rules)


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
                seen = T.meta_var(T.And(position <= own, position > own - window))
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
            if d < head_dim and position <= own and position > own - window:
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


def _page(tile: int, spans: int, heads: int, group: int, head_dim: int, rules: Scores):
    """Return how a warp attends to a page."""
    score, soften = _score(tile, head_dim), _soften(tile, heads, rules)
    load, gather = _load(head_dim, rules), _gather(tile, spans)

    @T.inline
    def page_(
        total, s, k, x, v, peak, weight, fresh, query, keys, values, layer, held, head, page, own, lane
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


def _begin(tile: int, spans: int, head_dim: int, scale: float):
    """Return how a block's queries come into shared memory, and sums begin."""

    @T.inline
    def begin(query, queries, total, peak, weight, i, head, tx):
        for turn in T.unroll(-(-tile * head_dim // THREADS)):
            if turn * THREADS + tx < tile * head_dim:
                query[turn * THREADS + tx] = queries[
                    i, head * head_dim + turn * THREADS + tx
                ] * T.float32(scale)
        for at in T.unroll(tile * spans * WIDE):
            total[at] = T.float32(0)
        for g in T.unroll(tile):
            peak[g] = T.float32(LOWEST)
            weight[g] = T.float32(0)
        T.tvm_storage_sync("shared")

    return begin


def _meet(tile: int, spans: int, head_dim: int):
    """Return how warps put what they found into shared memory, and wait for each other."""

    @T.inline
    def meet(outs, meeting, total, peak, weight, tx):
        for g in T.unroll(tile):
            for j in T.unroll(2):
                T.evaluate(
                    ADD_FLOATS_ACROSS(T.address_of(weight[g]), T.uint32(1) << T.Cast("uint32", j))
                )
            if tx % 32 == 0:
                meeting[0, tx // 32, g] = peak[g]
                meeting[1, tx // 32, g] = weight[g]
            for span, c in T.grid(spans, WIDE):
                d = T.meta_var(span * SPAN + tx % 32 * WIDE + c)
                if d < head_dim:
                    outs[tx // 32, g * head_dim + d] = total[(g * spans + span) * WIDE + c]
        T.tvm_storage_sync("shared")

    return meet


def _finish(tile: int, head_dim: int):
    """Return how threads add what the warps found, in their order; nothing where there was no page."""

    @T.inline
    def finish(found, states, outs, meeting, v, i, part, head, some, tx):
        for turn in T.unroll(-(-tile * head_dim // THREADS)):
            item = T.bind(turn * THREADS + tx)
            if item < tile * head_dim:
                g = T.bind(item // head_dim)
                v[0] = T.float32(LOWEST)
                v[1] = T.float32(0)
                v[2] = T.float32(0)
                for warp in T.unroll(WARPS):
                    v[0] = T.max(v[0], meeting[0, warp, g])
                for warp in T.unroll(WARPS):
                    v[3] = exp(meeting[0, warp, g] - v[0])
                    v[1] = v[1] + v[3] * meeting[1, warp, g]
                    v[2] = v[2] + v[3] * outs[warp, item]
                if some:
                    found[i, part, head * head_dim + item] = v[2]
                if item % head_dim == 0:
                    states[i, part, 0, head + g] = v[0]
                    states[i, part, 1, head + g] = v[1]

    return finish


@functools.cache
def kernel(heads: int, kv_heads: int, head_dim: int, rules: Scores) -> PrimFunc:
    """Return the function that `ops.attend_parts.attend_parts` describes, for threads."""
    group, count = heads // kv_heads, parts(kv_heads)
    spans = -(-head_dim // SPAN)
    tile = divisor(group, max(TILE // spans, 1))
    attend_page = _page(tile, spans, heads, group, head_dim, rules)
    begin = _begin(tile, spans, head_dim, rules.scale)
    meet, finish = _meet(tile, spans, head_dim), _finish(tile, head_dim)
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
        part = T.launch_thread("blockIdx.x", count)
        tiles = T.launch_thread("blockIdx.y", heads // tile)
        i = T.launch_thread("blockIdx.z", n)
        tx = T.launch_thread("threadIdx.x", THREADS)
        # without this bound the assembler saves registers, and loads come after what uses them
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 2)
        query = T.alloc_buffer((tile * head_dim,), "float32", scope="shared")
        outs = T.alloc_buffer((WARPS, tile * head_dim), "float32", scope="shared")
        meeting = T.alloc_buffer((2, WARPS, tile), "float32", scope="shared")
        k = T.alloc_buffer((HELD * WIDE,), "float32", scope="local")
        x = T.alloc_buffer((PAGE * WIDE,), "float32", scope="local")
        scores = T.alloc_buffer((tile * WIDE,), "float32", scope="local")
        total = T.alloc_buffer((tile * spans * WIDE,), "float32", scope="local")
        peak = T.alloc_buffer((tile,), "float32", scope="local")
        weight = T.alloc_buffer((tile,), "float32", scope="local")
        fresh = T.alloc_buffer((tile,), "float32", scope="local")
        v = T.alloc_buffer((4,), "float32", scope="local")
        head = T.meta_var(tiles * tile)
        own = T.bind(length[i])
        start, end = T.meta_var(pages_of(T.Cast("int32", part), own, rules, count))
        first = T.bind(start)
        behind = T.bind(end)
        begin(query, queries, total, peak, weight, i, head, tx)
        for turn in T.serial((T.max(behind - first, 0) + WARPS - 1) // WARPS):
            page = T.bind(first + turn * WARPS + T.Cast("int32", tx // 32))
            if page < behind:
                held = T.bind(table[i, page])
                attend_page(
                    *(total, scores, k, x, v, peak, weight, fresh, query),
                    *(keys, values, layer, held, head, page, own, tx % 32),
                )
        meet(outs, meeting, total, peak, weight, tx)
        finish(found, states, outs, meeting, v, i, part, head, first < behind, tx)

    return attend
