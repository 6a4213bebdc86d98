"""sample: the next token of each sequence from its logits, seeded and counter-based.

In this order, as transformers does it:

    penalize  logits of tokens in the history are divided (positive) or multiplied (negative)
    soften    weights exp((score - largest) / temperature); 0 keeps only the first largest
    keep      top-k, then top-p: every token whose weight reaches a threshold, found exactly by
              bisection over the bit patterns of the non-negative weights: ties are kept, and
              nothing is sorted
    draw      splitmix64(seed + (step + 1) · golden gamma), 53 bits, against the running sum

Each row skips what its own parameters switch off, and all but `penalize` change the weights in place:
a greedy step is a copy, a search and a look. It lives in model.so so that hosts stay thin.

Small buffers have the scope "global", which TVM keeps on the stack; it asks the heap for "local" ones,
and then LLVM cannot keep them in registers.

The functions are kept once made: TVM's parser takes longer over them than over all the rest of a model.
"""

import functools

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.elementwise import EXP_LOWEST, exp
from shiftadd_tvm.ops.shift import Array

BY_MASS = "shiftadd.by_mass"  # attribute of `sample_keep`: top-p, not top-k
GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
WIDTH = 32  # tokens that one step of a loop takes side by side
SPAN = 256  # tokens that are passed over together where all their weights are 0


def _sweeps(vocabulary: int) -> tuple[tuple[int, int, int], ...]:
    """Return the (first token, steps, tokens a step) that cover a vocabulary: vectors, then the rest."""
    rest = vocabulary % WIDTH
    return ((0, vocabulary // WIDTH, WIDTH), (vocabulary - rest, rest, 1))


@T.inline
def _fold(peak, width):
    for lane in T.vectorized(width):
        peak[lane] = T.max(peak[lane], peak[lane + width])


@T.inline
def _largest(peak, weights, i, first):
    """Set peak[0] to the largest of the span of weights (none of them negative) from `first` on."""
    for lane in T.vectorized(WIDTH):
        peak[lane] = T.float32(0)
    for step in T.serial(SPAN // WIDTH):
        for lane in T.vectorized(WIDTH):
            peak[lane] = T.max(peak[lane], weights[i, first + step * WIDTH + lane])
    _fold(peak, 16)
    _fold(peak, 8)
    _fold(peak, 4)
    _fold(peak, 2)
    _fold(peak, 1)


@functools.cache
def penalize(vocabulary: int):
    """Return the TIR function (logits (b, V), history (b, c), length, penalty (b,)) -> (b, V)."""
    b, context = tirx.Var("b", "int64"), tirx.Var("context", "int64")
    vectors, rest = _sweeps(vocabulary)

    @T.inline
    def copy(scores, logits, i, first, steps, width):
        for step in T.serial(steps):
            for lane in T.vectorized(width):
                scores[i, first + step * width + lane] = logits[i, first + step * width + lane]

    @T.prim_func(s_tir=True, private=True)
    def penalize(
        logits: T.Buffer((b, vocabulary), "float32"),
        history: T.Buffer((b, context), "int32"),
        length: T.Buffer((b,), "int32"),
        penalty: T.Buffer((b,), "float32"),
        scores: T.Buffer((b, vocabulary), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "sample_penalize"})
        for row in T.serial(b):
            with T.sblock("penalize"):
                i = T.axis.spatial(b, row)
                T.reads()
                T.writes()
                copy(scores, logits, i, *vectors)
                copy(scores, logits, i, *rest)
                if penalty[i] != T.float32(1):
                    for j in T.serial(length[i]):  # from `logits`: a repeated token counts once
                        token = T.bind(history[i, j])
                        scores[i, token] = T.if_then_else(
                            logits[i, token] > T.float32(0),
                            logits[i, token] / penalty[i],
                            logits[i, token] * penalty[i],
                        )

    return penalize


@T.inline
def _search(scores, peak, at, i, vocabulary):
    """Set peak[0] to the largest score and at[0] to its first token; NaNs are passed over."""
    for lane in T.vectorized(WIDTH):
        peak[lane] = T.float32("-inf")
        at[lane] = 0
    for step in T.serial(vocabulary // WIDTH):
        for lane in T.vectorized(WIDTH):
            score = T.bind(scores[i, step * WIDTH + lane])
            at[lane] = T.Select(score > peak[lane], T.Cast("int32", step), at[lane])
            peak[lane] = T.Select(score > peak[lane], score, peak[lane])
    at[0] = at[0] * WIDTH
    for lane in T.serial(1, WIDTH):
        token = T.bind(at[lane] * WIDTH + T.Cast("int32", lane))
        if peak[lane] > peak[0] or (peak[lane] == peak[0] and token < at[0]):
            peak[0] = peak[lane]
            at[0] = token
    for v in T.serial(vocabulary // WIDTH * WIDTH, vocabulary):
        if scores[i, v] > peak[0]:
            peak[0] = scores[i, v]
            at[0] = T.Cast("int32", v)


@T.inline
def _raise(scores, peak, temperature, i, first, steps, width):
    for step in T.serial(steps):
        for lane in T.vectorized(width):
            power = T.bind((scores[i, first + step * width + lane] - peak[0]) / temperature[i])
            scores[i, first + step * width + lane] = T.Select(
                power < T.float32(EXP_LOWEST), T.float32(0), exp(power)
            )


@T.inline
def _clear(scores, i, first, steps, width):
    for step in T.serial(steps):
        for lane in T.vectorized(width):
            scores[i, first + step * width + lane] = T.float32(0)


@functools.cache
def soften(vocabulary: int):
    """Return the TIR function (scores (b, V), temperature (b,)) that makes weights of the scores."""
    b = tirx.Var("b", "int64")
    vectors, rest = _sweeps(vocabulary)

    @T.prim_func(s_tir=True, private=True)
    def soften(
        scores: T.Buffer((b, vocabulary), "float32"),
        temperature: T.Buffer((b,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "sample_soften"})
        for row in T.serial(b):
            with T.sblock("soften"):
                i = T.axis.spatial(b, row)
                T.reads()
                T.writes()
                peak = T.alloc_buffer((WIDTH,), "float32")
                at = T.alloc_buffer((WIDTH,), "int32")
                _search(scores, peak, at, i, vocabulary)
                if temperature[i] > T.float32(0):
                    _raise(scores, peak, temperature, i, *vectors)
                    _raise(scores, peak, temperature, i, *rest)
                else:
                    _clear(scores, i, *vectors)
                    _clear(scores, i, *rest)
                    scores[i, at[0]] = T.float32(1)

    return soften


@T.inline
def _cut(weights, threshold, i, first, steps, width):
    for step in T.serial(steps):
        for lane in T.vectorized(width):
            weight = T.bind(weights[i, first + step * width + lane])
            weights[i, first + step * width + lane] = T.Select(
                T.reinterpret("int32", weight) >= threshold, weight, T.float32(0)
            )


@T.inline
def _peaks(peaks, weights, i, spans):
    """Set the bits of the largest weight of each span."""
    peak = T.alloc_buffer((WIDTH,), "float32")
    for span in T.serial(spans):
        _largest(peak, weights, i, span * SPAN)
        peaks[span] = T.reinterpret("int32", peak[0])


def _total(vocabulary: int, sums: str):
    """Return how to set reached[0] to the sum (float64) or count (int32) of a row's weights whose bits
    are at least `candidate`."""
    after = (vocabulary // SPAN * SPAN, vocabulary % SPAN, 1)
    zero = tirx.const(0, sums)

    def part(weight):
        return T.Cast("float64", weight) if sums == "float64" else T.int32(1)

    @T.inline
    def reach(reached, weights, candidate, i, first, steps, width):
        for step in T.serial(steps):
            for lane in T.vectorized(width):
                weight = T.bind(weights[i, first + step * width + lane])
                reached[lane] = reached[lane] + T.Select(
                    T.reinterpret("int32", weight) >= candidate, part(weight), zero
                )

    @T.inline
    def total(reached, weights, peaks, candidate, i):
        for lane in T.vectorized(WIDTH):
            reached[lane] = zero
        for span in T.serial(vocabulary // SPAN):
            if peaks[span] >= candidate:  # few spans are, of a distribution with a narrow peak
                reach(reached, weights, candidate, i, span * SPAN, SPAN // WIDTH, WIDTH)
        reach(reached, weights, candidate, i, *after)
        for lane in T.serial(1, WIDTH):
            reached[0] = reached[0] + reached[lane]

    return total


@functools.cache
def keep(vocabulary: int, by_mass: bool):
    """Return the TIR function (weights (b, V), limit (b,)) that makes zeros of the weights not kept.

    `by_mass`: the largest weights that together reach `limit` (float32) of the whole (top-p), 1
    meaning all; otherwise the `limit` (int32) largest (top-k), 0 meaning all.
    """
    b, dtype = tirx.Var("b", "int64"), "float32" if by_mass else "int32"
    sums = "float64" if by_mass else "int32"
    vectors, rest = _sweeps(vocabulary)
    total, zero = _total(vocabulary, sums), tirx.const(0, sums)

    def limits(limit):
        return limit < T.float32(1) if by_mass else tirx.all(limit > 0, limit < vocabulary)

    def wanted(limit, total):
        return T.Cast("float64", limit) * total if by_mass else limit

    @T.prim_func(s_tir=True, private=True)
    def keep(weights: T.Buffer((b, vocabulary), "float32"), limit: T.Buffer((b,), dtype)):
        T.func_attr({"tirx.noalias": True, OP: "sample_keep", BY_MASS: by_mass})
        for row in T.serial(b):
            with T.sblock("keep"):
                i = T.axis.spatial(b, row)
                T.reads()
                T.writes()
                if limits(limit[i]):
                    reached = T.alloc_buffer((WIDTH,), sums)
                    goal = T.alloc_buffer((1,), sums)
                    threshold = T.alloc_buffer((1,), "int32")
                    peaks = T.alloc_buffer((vocabulary // SPAN + 1,), "int32")
                    _peaks(peaks, weights, i, vocabulary // SPAN)
                    total(reached, weights, peaks, 0, i)
                    goal[0] = wanted(limit[i], reached[0])
                    threshold[0] = 0
                    for bit in T.serial(31):
                        candidate = T.bind(threshold[0] | (1 << (30 - T.Cast("int32", bit))))
                        total(reached, weights, peaks, candidate, i)
                        if reached[0] >= goal[0] and reached[0] > zero:
                            threshold[0] = candidate
                    _cut(weights, threshold[0], i, *vectors)
                    _cut(weights, threshold[0], i, *rest)

    return keep


def _signed(constant: int) -> int:
    """Return the int64 with the bits of a uint64 constant (TVM's literals are signed)."""
    return constant - (1 << 64) if constant >> 63 else constant


def uniform(seed, step):
    """Return the number in [0, 1), float64, of a seed (int64) and a step (int32), as expressions."""

    def mixed(z, right: int, factor: int):
        return (z ^ (z >> T.uint64(right))) * T.reinterpret("uint64", T.int64(_signed(factor)))

    gammas = T.reinterpret("uint64", T.int64(_signed(GAMMA))) * T.Cast("uint64", step + 1)
    z = mixed(mixed(T.reinterpret("uint64", seed) + gammas, 30, MIX_1), 27, MIX_2)
    # 2^-53 by its bits: TVM's CUDA writes float64 constants with 15 decimals, which makes it 0
    unit = T.reinterpret("float64", T.int64((1023 - 53) << 52))
    return T.Cast("float64", (z ^ (z >> T.uint64(31))) >> T.uint64(11)) * unit


@functools.cache
def draw(vocabulary: int):
    """Return the TIR function (weights (b, V), seed (b,) int64, step (b,) int32) -> tokens (b,)."""
    b, spans = tirx.Var("b", "int64"), -(-vocabulary // SPAN)

    @T.prim_func(s_tir=True, private=True)
    def draw(
        weights: T.Buffer((b, vocabulary), "float32"),
        seed: T.Buffer((b,), "int64"),
        step: T.Buffer((b,), "int32"),
        tokens: T.Buffer((b,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "sample_draw"})
        for row in T.serial(b):
            with T.sblock("draw"):
                i = T.axis.spatial(b, row)
                T.reads()
                T.writes()
                starts = T.alloc_buffer((spans,), "float64")  # the sum before each
                running = T.alloc_buffer((2,), "float64")  # target, sum so far
                chosen = T.alloc_buffer((1,), "int32")
                peak = T.alloc_buffer((WIDTH,), "float32")
                running[1] = T.float64(0)
                for span in T.serial(vocabulary // SPAN):
                    _largest(peak, weights, i, span * SPAN)
                    starts[span] = T.float64("inf")  # adding zeros changes no sum
                    if peak[0] > T.float32(0):
                        starts[span] = running[1]
                        for v in T.serial(SPAN):
                            running[1] += T.Cast("float64", weights[i, span * SPAN + v])
                if vocabulary % SPAN > 0:
                    starts[spans - 1] = running[1]
                    for v in T.serial(vocabulary % SPAN):
                        running[1] += T.Cast("float64", weights[i, (spans - 1) * SPAN + v])
                running[0] = running[1] * uniform(seed[i], step[i])
                chosen[0] = 0
                for span in T.serial(spans):
                    if starts[span] <= running[0]:
                        chosen[0] = T.Cast("int32", span)
                running[1] = starts[chosen[0]]
                tokens[i] = 0
                for v in T.serial(T.min(SPAN, vocabulary - chosen[0] * SPAN)):
                    if running[1] <= running[0] and weights[i, chosen[0] * SPAN + v] > T.float32(0):
                        tokens[i] = chosen[0] * SPAN + v
                    running[1] += T.Cast("float64", weights[i, chosen[0] * SPAN + v])

    return draw


def reference_uniform(seed: int, step: int) -> float:
    """Return the uniform number in [0, 1) of `step`: splitmix64 as published by Vigna."""
    mask = (1 << 64) - 1
    z = (seed + (step + 1) * GAMMA) & mask
    z = ((z ^ (z >> 30)) * MIX_1) & mask
    z = ((z ^ (z >> 27)) * MIX_2) & mask
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def reference_penalize(logits: Array, history: Array, penalty: float) -> Array:
    """Return the scores (V,) float32 after the repetition penalty over history (length,)."""
    scores: Array = logits.astype(np.float32).copy()
    seen = np.unique(history)
    held = scores[seen]
    scores[seen] = np.where(held > 0, held / np.float32(penalty), held * np.float32(penalty))
    return scores


def reference_soften(scores: Array, temperature: float) -> Array:
    """Return the weights (V,) float32 of scores (V,)."""
    if temperature <= 0:
        return (np.arange(len(scores)) == scores.argmax()).astype(np.float32)
    return np.exp((scores - scores.max()) / np.float32(temperature)).astype(np.float32)


def reference_keep(weights: Array, top_k: int, top_p: float) -> Array:
    """Return the weights (V,) float32 that remain after top-k (0: off), then top-p, by sorting."""
    if top_k > 0:
        kth = np.sort(weights)[::-1][min(top_k, len(weights)) - 1]
        weights = np.where(weights >= kth, weights, 0)
    ordered = np.sort(weights)[::-1]
    reached = np.cumsum(ordered, dtype=np.float64) >= top_p * weights.sum(dtype=np.float64)
    last = np.argmax(reached) if reached.any() else np.count_nonzero(ordered) - 1
    return np.where(weights >= ordered[last], weights, 0).astype(np.float32)


def reference_draw(weights: Array, seed: int, step: int) -> int:
    """Return the token that the number of (seed, step) picks from weights (V,)."""
    running = np.cumsum(weights, dtype=np.float64)
    return int(np.argmax(running > reference_uniform(seed, step) * running[-1]))


REFERENCES = {
    "sample_penalize": reference_penalize,
    "sample_soften": reference_soften,
    "sample_keep": reference_keep,
    "sample_draw": reference_draw,
}
