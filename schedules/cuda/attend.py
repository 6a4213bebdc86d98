"""attend on GPUs: a block of threads for each token and key/value head, one pass over the pages.

In turns over a run of positions: a thread scores a query head at a position, then a thread weighs a
dimension of an output. Scores and weights meet in shared memory; outputs stay in registers.
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
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.scores import LOWEST, Scores, alibi_slope
from shiftadd_tvm.schedules.cuda._threads import THREADS

OPS = ("attend",)
RUN = 4 * PAGE  # positions that are softened together


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel for the sizes of the function."""
    function = sch.mod["main"]
    queries, keys = list(function.params)[:2]
    kv_heads, head_dim = (int(size) for size in keys.shape[2:4])
    heads = int(queries.shape[1]) // head_dim
    sequence, *rules = json.loads(str(function.attrs[RULES]))
    return kernel(heads, kv_heads, head_dim, sequence, Scores(*rules))


def _int64(name: str):
    return tirx.Var(name, "int64")


def _window(rules: Scores) -> int:
    """Return how many positions a token sees: more than there are where the rules set no bound."""
    return rules.window or 1 << 30


def _score(group: int, head_dim: int, heads: int, rules: Scores):
    """Return how threads score the positions of a run: a query head at a position each."""
    cap, alibi, soft, window = rules.cap, rules.alibi, rules.cap > 0, _window(rules)

    @T.inline
    def score(query, scores, sums, keys, table, s, layer, h, run, seen, tx):
        for turn in T.unroll(-(-group * RUN // THREADS)):
            item = T.bind(turn * THREADS + tx)
            position = T.bind(run * RUN + item % RUN)
            if item < group * RUN:
                sums[0] = T.float32(LOWEST)
                # those that the token sees: up to its own, and of these the last `window` ones
                if position < seen and position >= seen - window:
                    sums[0] = T.float32(0)
                    held = T.bind(table[s, position // PAGE])
                    for d in T.serial(head_dim):
                        sums[0] = (
                            sums[0]
                            + query[item // RUN * head_dim + d]
                            * keys[layer, held, h, d, position % PAGE]
                        )
                    if soft:
                        sums[0] = capped(sums[0], cap)
                    if alibi:
                        slope = T.bind(alibi_slope(h * group + item // RUN, heads))
                        sums[0] = sums[0] + slope * T.Cast("float32", position - (seen - 1))
                scores[item // RUN, item % RUN] = sums[0]
        T.tvm_storage_sync("shared")

    return score


def _peaks(group: int) -> int:
    """Return how many threads keep a peak: one a query head. A single one would know its place, which
    TVM then takes for a place that all threads write, and asks for a barrier inside the condition."""
    return max(group, 2)


@T.inline
def _soften(scores, sums, peak, fresh, group, tx):
    """Turn scores into weights; fresh becomes what rescales all that came before."""
    if tx < _peaks(group):
        sums[0] = peak[tx]
        for j in T.serial(RUN):
            sums[0] = T.max(sums[0], scores[T.min(tx, group - 1), j])
        fresh[tx] = exp(peak[tx] - sums[0])
        peak[tx] = sums[0]
    T.tvm_storage_sync("shared")
    for turn in T.unroll(-(-group * RUN // THREADS)):
        item = T.bind(turn * THREADS + tx)
        if item < group * RUN:
            scores[item // RUN, item % RUN] = exp(
                scores[item // RUN, item % RUN] - peak[item // RUN]
            )
    T.tvm_storage_sync("shared")


def _gather(size: int, head_dim: int):
    """Return how threads weigh the values of a run: a dimension of a query head each."""

    @T.inline
    def gather(total, weight, scores, sums, fresh, values, table, s, layer, h, run, seen, tx):
        for turn in T.unroll(-(-size // THREADS)):
            item = T.bind(turn * THREADS + tx)
            if item < size:
                sums[0] = total[turn] * fresh[item // head_dim]
                sums[1] = weight[turn] * fresh[item // head_dim]
                # no further than the token sees: what lies there may be no number
                for j in T.serial(T.min(RUN, seen - run * RUN)):
                    position = T.bind(run * RUN + j)
                    held = T.bind(table[s, position // PAGE])
                    sums[0] = (
                        sums[0]
                        + scores[item // head_dim, j]
                        * values[layer, held, h, position % PAGE, item % head_dim]
                    )
                    sums[1] = sums[1] + scores[item // head_dim, j]
                total[turn] = sums[0]
                weight[turn] = sums[1]
        T.tvm_storage_sync("shared")

    return gather


@functools.cache
def kernel(
    heads: int, kv_heads: int, head_dim: int, sequence: bool, rules: Scores
) -> PrimFunc:
    """Return the function that `ops.attend.attend` describes, for threads."""
    group, one = heads // kv_heads, 1 if sequence else 0
    scale, size, window = rules.scale, heads // kv_heads * head_dim, _window(rules)
    turns = -(-size // THREADS)
    score, gather = _score(group, head_dim, heads, rules), _gather(size, head_dim)
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
        i = T.launch_thread("blockIdx.x", n)
        h = T.launch_thread("blockIdx.y", kv_heads)
        tx = T.launch_thread("threadIdx.x", THREADS)
        # without this bound the assembler aims at more blocks and spills
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 2)
        query = T.alloc_buffer((size,), "float32", scope="shared")
        scores = T.alloc_buffer((group, RUN), "float32", scope="shared")
        peak = T.alloc_buffer((_peaks(group),), "float32", scope="shared")
        fresh = T.alloc_buffer((_peaks(group),), "float32", scope="shared")
        total = T.alloc_buffer((turns,), "float32", scope="local")
        weight = T.alloc_buffer((turns,), "float32", scope="local")
        sums = T.alloc_buffer((2,), "float32", scope="local")
        row = T.bind(i * (1 - one))  # of the table
        seen = T.bind(length[row] + T.Cast("int32", i * one) + 1)  # positions
        for turn in T.unroll(turns):
            if turn * THREADS + tx < size:
                query[turn * THREADS + tx] = queries[i, h * size + turn * THREADS + tx] * T.float32(
                    scale
                )
            total[turn] = T.float32(0)
            weight[turn] = T.float32(0)
        if tx < _peaks(group):
            peak[tx] = T.float32(LOWEST)
        T.tvm_storage_sync("shared")
        first = T.bind(T.max(seen - window, 0) // RUN)
        for turn in T.serial((seen + RUN - 1) // RUN - first):
            run = T.bind(first + turn)
            score(query, scores, sums, keys, table, row, layer, h, run, seen, tx)
            _soften(scores, sums, peak, fresh, group, tx)
            gather(total, weight, scores, sums, fresh, values, table, row, layer, h, run, seen, tx)
        for turn in T.unroll(turns):
            if turn * THREADS + tx < size:
                out[i, h * size + turn * THREADS + tx] = total[turn] / weight[turn]

    return attend
