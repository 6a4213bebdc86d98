"""attend_parts on GPUs: a block of threads for a part of the pages, which its warps attend to in turn.

Where the first pages lie is looked up, and the token's own heads are asked for, at once
(`_new_token.py`). Then come the pages of the past (`_past_pages.py`), and last, in the part that it
belongs to, the new token, which pages do not hold yet: it is in shared memory. Then the warps meet.
"""

import functools
import json

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.attend import RULES
from shiftadd_tvm.ops.attend_parts import heads_of, pages_of, parts, with_parameters
from shiftadd_tvm.ops.attend_run import divisor
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.heads import Heads
from shiftadd_tvm.ops.scores import LOWEST, Scores
from shiftadd_tvm.schedules.cuda import _new_token, _past_pages
from shiftadd_tvm.schedules.cuda._instructions import ADD_FLOATS_ACROSS
from shiftadd_tvm.schedules.cuda._new_token import THREADS, WARPS
from shiftadd_tvm.schedules.cuda._past_pages import SPAN, WIDE

OPS = ("attend_parts",)
TILE = 8  # query heads at most, of a span, that a block scores together: more spill


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel for the heads and rules of the function."""
    function = sch.mod["main"]
    return kernel(heads_of(function), Scores(*json.loads(str(function.attrs[RULES]))))


def _begin(tile: int, spans: int):
    """Return how sums begin."""

    @T.inline
    def begin(total, peak, weight):
        for at in T.unroll(tile * spans * WIDE):
            total[at] = T.float32(0)
        for g in T.unroll(tile):
            peak[g] = T.float32(LOWEST)
            weight[g] = T.float32(0)

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
    """Return how threads add what the warps found, in their order, and the new token where it belongs to
    the part (`newest`); nothing where there was no page."""

    @T.inline
    def finish(found, states, outs, meeting, new, v, i, part, head, some, newest, tx):
        for turn in T.unroll(-(-tile * head_dim // THREADS)):
            item = T.bind(turn * THREADS + tx)
            if item < tile * head_dim:
                g = T.bind(item // head_dim)
                v[0] = T.float32(LOWEST)
                v[1] = T.float32(0)
                v[2] = T.float32(0)
                for warp in T.unroll(WARPS):
                    v[0] = T.max(v[0], meeting[0, warp, g])
                if newest:
                    v[0] = T.max(v[0], meeting[0, WARPS, g])
                for warp in T.unroll(WARPS):
                    v[3] = exp(meeting[0, warp, g] - v[0])
                    v[1] = v[1] + v[3] * meeting[1, warp, g]
                    v[2] = v[2] + v[3] * outs[warp, item]
                if newest:
                    v[3] = exp(meeting[0, WARPS, g] - v[0])
                    v[1] = v[1] + v[3]
                    v[2] = v[2] + v[3] * new[1, item % head_dim]
                if some:
                    found[i, part, head * head_dim + item] = v[2]
                if item % head_dim == 0:
                    states[i, part, 0, head + g] = v[0]
                    states[i, part, 1, head + g] = v[1]

    return finish


def _block(tile: int, of: Heads, rules: Scores):
    """Return what a block does for `tile` query heads from `head` on and a part of the pages."""
    spans, size, group = -(-of.key.size // SPAN), of.key.size, of.query.heads // of.key.heads
    take, score = _new_token.take(of, tile, rules.scale), _new_token.score(of, tile, rules)
    begin, attend_pages = _begin(tile, spans), _past_pages.attend(tile, spans, of, rules)
    write, meet, finish = _new_token.write(of), _meet(tile, spans, size), _finish(tile, size)
    span_of = functools.partial(pages_of, rules=rules, count=parts(of.key.heads))

    @T.inline
    def block(
        keys, values, given_q, given_k, given_v, norm_q, norm_k, angles, table, length, layer, found,
        states, part, head, i, tx
    ):  # fmt: skip
        query = T.alloc_buffer((tile * size,), "float32", scope="shared")
        new = T.alloc_buffer((2, size), "float32", scope="shared")
        outs = T.alloc_buffer((WARPS, tile * size), "float32", scope="shared")
        meeting = T.alloc_buffer((2, WARPS + 1, tile), "float32", scope="shared")
        total = T.alloc_buffer((tile * spans * WIDE,), "float32", scope="local")
        peak = T.alloc_buffer((tile,), "float32", scope="local")
        weight = T.alloc_buffer((tile,), "float32", scope="local")
        v = T.alloc_buffer((4,), "float32", scope="local")
        at = T.alloc_buffer((1,), "int32", scope="local")
        warp, lane = T.meta_var((T.Cast("int32", tx // 32), tx % 32))
        own = T.bind(length[i])
        start, end = T.meta_var(span_of(T.Cast("int32", part), own))
        first = T.bind(start)
        behind = T.bind(end)
        at[0] = table[i, T.min(first + warp, own // PAGE)]
        last = T.bind(table[i, own // PAGE])
        take(
            *(query, new, given_q, given_k, given_v, norm_q, norm_k, angles),
            *(i, head, head // group, warp, lane),
        )
        begin(total, peak, weight)
        T.tvm_storage_sync("shared")
        # the last page may hold the new token alone
        past = T.meta_var(T.min(behind, (own + PAGE - 1) // PAGE))
        attend_pages(
            *(total, peak, weight, v, at, query, keys, values, table, layer),
            *(i, head, first + warp, past, own, lane),
        )
        newest = T.meta_var(T.And(first < behind, behind == own // PAGE + 1))
        if newest:
            if head % group == 0:
                write(keys, values, new, layer, last, head // group, own, tx)
            score(meeting, query, new, v, warp, lane)
        meet(outs, meeting, total, peak, weight, tx)
        finish(found, states, outs, meeting, new, v, i, part, head, first < behind, newest, tx)

    return block


@functools.cache
def kernel(of: Heads, rules: Scores) -> PrimFunc:
    """Return the function that `ops.attend_parts.attend_parts` describes, for threads."""
    heads, kv_heads, head_dim, count = of.query.heads, of.key.heads, of.key.size, parts(of.key.heads)
    tile = divisor(heads // kv_heads, max(TILE // -(-head_dim // SPAN), 1))
    block, (width_q, width_k, width_v) = _block(tile, of, rules), of.columns
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
        block(
            *(keys, values, given_q, given_k, given_v, norm_q, norm_k, angles, table, length, layer),
            *(found, states, part, tiles * tile, i, tx),
        )

    return with_parameters(attend, of)
