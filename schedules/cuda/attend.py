"""attend on GPUs, of the tokens of one sequence: tensor cores, a warp for 16 tokens of a query head.

    scores = queries (16, D) · keys (D, 16), a page at a time      weights (16, 16) · values (16, D)

Products are of TF32, float32 cut to 11 bits, summed in float32. A number of 24 bits is two of those, and
of the four products the three that matter are added: as exact as float32, for thrice the work, which is
little beside the linears'. Keys and values come right from the pages; other warps of the block ask for
the same. A lane's scores are its left operand of the second product, whose inputs are ordered so.
"""

import json

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.activation import capped
from shiftadd_tvm.ops.attend import RULES
from shiftadd_tvm.ops.attend_parts import window_of
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.scores import LOWEST, Scores, alibi_slope
from shiftadd_tvm.schedules.cuda._instructions import (
    ADD_FLOATS_ACROSS,
    MAX_FLOATS_ACROSS,
    MMA_TF32,
)

OPS = ("attend",)
TOKENS = 16  # rows of a product
STEP = 8  # inputs of a product, and its columns
QUERIES = 32 << 10  # bytes of shared memory for queries
WARPS = 4  # at most
CUT = 0xFFFFE000  # the bits of a float32 that are TF32


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel for the sizes of the function."""
    function = sch.mod["main"]
    queries, keys = list(function.params)[:2]
    kv_heads, head_dim = (int(size) for size in keys.shape[2:4])
    sequence, *rules = json.loads(str(function.attrs[RULES]))
    assert sequence, "a decode step attends by parts (attend_parts.py)"
    return kernel(int(queries.shape[1]) // head_dim, kv_heads, head_dim, Scores(*rules))


def _cut(value):
    """Return the part of a float32 that TF32 holds; the rest of it is exact too."""
    return T.reinterpret("float32", T.bitwise_and(T.reinterpret("uint32", value), T.uint32(CUT)))


@T.inline
def _multiply(sums, at, a, b, low):
    """Add the product of a (16, 8) and b (8, 8), a lane's 4 and 2 numbers, to the sums from `at` on."""
    for r in T.unroll(4):
        low[r] = a[r] - _cut(a[r])
        a[r] = _cut(a[r])
    for r in T.unroll(2):
        low[4 + r] = b[r] - _cut(b[r])
        b[r] = _cut(b[r])
    to = T.meta_var(T.address_of(sums[at]))
    T.evaluate(MMA_TF32(to, T.address_of(low[0]), b[0], b[1]))
    T.evaluate(MMA_TF32(to, T.address_of(a[0]), low[4], low[5]))
    T.evaluate(MMA_TF32(to, T.address_of(a[0]), b[0], b[1]))


def _score(steps: int, head_dim: int):
    """Return how a warp scores a page: sums of column tile t, in a lane of rows l / 4 and + 8, and of the
    positions 8 t + 2 (l % 4) and + 1."""

    @T.inline
    def score(s, a, b, low, query, keys, layer, held, h, warp, lane):
        for i in T.unroll(PAGE // STEP * 4):
            s[i] = T.float32(0)
        for step in T.unroll(steps):
            for t in T.unroll(PAGE // STEP):
                for r in T.unroll(4):
                    a[r] = query[warp, step, lane, r]
                for r in T.unroll(2):
                    d = T.meta_var(step * STEP + lane % 4 + 4 * r)
                    b[r] = T.float32(0)
                    if d < head_dim:
                        b[r] = keys[layer, held, h, d, t * STEP + lane // 4]
                _multiply(s, t * 4, a, b, low)

    return score


def _soften(steps: int, heads: int, rules: Scores):
    """Return how scores become weights, of the rows l / 4 (half 0) and l / 4 + 8 of a lane; what came
    before is rescaled."""
    cap, alibi, soft, window = rules.cap, rules.alibi, rules.cap > 0, window_of(rules)

    @T.inline
    def soften(s, total, peak, weight, v, head, page, own, lane):
        for half in T.unroll(2):
            v[0] = T.float32(LOWEST)
            for t, c in T.grid(PAGE // STEP, 2):
                at = T.meta_var(t * 4 + half * 2 + c)
                position = T.meta_var(page * PAGE + t * STEP + lane % 4 * 2 + c)
                row = T.meta_var(own + half * 8)
                if soft:
                    s[at] = capped(s[at], cap)
                if alibi:
                    distance = T.meta_var(T.Cast("float32", position - row))
                    s[at] = s[at] + alibi_slope(head, heads) * distance
                seen = T.meta_var(T.And(position <= row, position > row - window))
                s[at] = T.Select(seen, s[at], T.float32(LOWEST))
                v[0] = T.max(v[0], s[at])
            for j in T.unroll(2):
                T.evaluate(MAX_FLOATS_ACROSS(T.address_of(v[0]), T.uint32(1) << T.Cast("uint32", j)))
            v[0] = T.max(peak[half], v[0])
            v[1] = exp(peak[half] - v[0])
            peak[half] = v[0]
            weight[half] = weight[half] * v[1]
            for t, c in T.grid(PAGE // STEP, 2):
                at = T.meta_var(t * 4 + half * 2 + c)
                s[at] = exp(s[at] - peak[half])
                weight[half] = weight[half] + s[at]
            for step, c in T.grid(steps, 2):
                at = T.meta_var(step * 4 + half * 2 + c)
                total[at] = total[at] * v[1]

    return soften


def _gather(steps: int, head_dim: int):
    """Return how a warp adds the weighed values of a page: its inputs are the positions that its lanes
    have the weights of. What no row sees, which may be no number, is 0."""

    @T.inline
    def gather(total, s, a, b, low, values, layer, held, h, page, last, lane):
        for t, step in T.grid(PAGE // STEP, steps):
            for r in T.unroll(4):  # rows l / 4, + 8, then the same of the next position
                a[r] = s[t * 4 + r % 2 * 2 + r // 2]
            for r in T.unroll(2):
                slot = T.meta_var(t * STEP + lane % 4 * 2 + r)
                d = T.meta_var(step * STEP + lane // 4)
                b[r] = T.float32(0)
                if page * PAGE + slot <= last and d < head_dim:
                    b[r] = values[layer, held, h, slot, d]
            _multiply(total, step * 4, a, b, low)

    return gather


def _begin(steps: int, head_dim: int, scale: float):
    """Return how a warp's queries come into shared memory, as its lanes want them: rows l / 4 and + 8,
    inputs l % 4, then the same of inputs + 4."""

    @T.inline
    def begin(query, queries, head, first, warp, lane, n):
        for step, r in T.grid(steps, 4):
            token = T.meta_var(first + lane // 4 + r % 2 * 8)
            d = T.meta_var(step * STEP + lane % 4 + r // 2 * 4)
            query[warp, step, lane, r] = T.float32(0)
            if token < n and d < head_dim:
                query[warp, step, lane, r] = queries[token, head * head_dim + d] * T.float32(scale)

    return begin


def _finish(steps: int, head_dim: int):
    """Return how a warp's sums become results."""

    @T.inline
    def finish(out, total, weight, head, first, lane, n):
        for half in T.unroll(2):
            for j in T.unroll(2):
                bit = T.meta_var(T.uint32(1) << T.Cast("uint32", j))
                T.evaluate(ADD_FLOATS_ACROSS(T.address_of(weight[half]), bit))
            weight[half] = T.float32(1) / weight[half]
        for step, half, c in T.grid(steps, 2, 2):
            token = T.meta_var(first + half * 8 + lane // 4)
            d = T.meta_var(step * STEP + lane % 4 * 2 + c)
            if token < n and d < head_dim:
                out[token, head * head_dim + d] = total[step * 4 + half * 2 + c] * weight[half]

    return finish


def kernel(heads: int, kv_heads: int, head_dim: int, rules: Scores) -> PrimFunc:
    """Return the function that `ops.attend.attend` describes, for threads, of one sequence."""
    group, steps = heads // kv_heads, -(-head_dim // STEP)
    warps = max(min(QUERIES // (steps * 32 * 16), WARPS), 1)
    score, soften, gather = (
        *(_score(steps, head_dim), _soften(steps, heads, rules)),
        _gather(steps, head_dim),
    )
    begin, finish = _begin(steps, head_dim, rules.scale), _finish(steps, head_dim)
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
        out: T.Buffer((n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "attend"})
        block = T.launch_thread("blockIdx.x", (n + (warps * TOKENS - 1)) // (warps * TOKENS))
        head = T.launch_thread("blockIdx.y", heads)
        tx = T.launch_thread("threadIdx.x", 32 * warps)
        # without this bound the assembler saves registers
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 2)
        query = T.alloc_buffer((warps, steps, 32, 4), "float32", scope="shared")
        a = T.alloc_buffer((4,), "float32", scope="local")
        b = T.alloc_buffer((2,), "float32", scope="local")
        low = T.alloc_buffer((6,), "float32", scope="local")
        scores = T.alloc_buffer((PAGE // STEP * 4,), "float32", scope="local")
        total = T.alloc_buffer((steps * 4,), "float32", scope="local")
        peak = T.alloc_buffer((2,), "float32", scope="local")
        weight = T.alloc_buffer((2,), "float32", scope="local")
        v = T.alloc_buffer((2,), "float32", scope="local")
        # the latest tokens, which see most, come first
        blocks = T.meta_var((n + (warps * TOKENS - 1)) // (warps * TOKENS))
        first = T.bind(((blocks - 1 - block) * warps + tx // 32) * TOKENS)
        begin(query, queries, head, first, tx // 32, tx % 32, n)
        for i in T.unroll(steps * 4):
            total[i] = T.float32(0)
        for half in T.unroll(2):
            peak[half] = T.float32(LOWEST)
            weight[half] = T.float32(0)
        T.tvm_storage_sync("shared")
        before = T.bind(length[0] + T.Cast("int32", first))  # the position of the first token
        last = T.bind(length[0] + T.Cast("int32", T.min(first + TOKENS, n) - 1))
        start = T.bind(rules.first_page(before))
        for turn in T.serial(T.Select(first < n, last // PAGE + 1 - start, 0)):
            page = T.bind(start + turn)
            held = T.bind(table[0, page])
            score(scores, a, b, low, query, keys, layer, held, head // group, tx // 32, tx % 32)
            soften(scores, total, peak, weight, v, head, page, before + tx % 32 // 4, tx % 32)
            gather(total, scores, a, b, low, values, layer, held, head // group, page, last, tx % 32)
        finish(out, total, weight, head, first, tx % 32, n)

    return attend
