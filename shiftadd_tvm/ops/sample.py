"""sample: the next token of each sequence from its logits, seeded and counter-based.

In this order, as transformers does it:

    penalize  logits of tokens in the history are divided (positive) or multiplied (negative)
    soften    weights exp((score - largest) / temperature); 0 keeps only the first largest
    keep      top-k, then top-p: every token whose weight reaches a threshold, found exactly by
              bisection over the bit patterns of the non-negative weights: ties are kept, and
              nothing is sorted
    draw      splitmix64(seed + (step + 1) · golden gamma), 53 bits, against the running sum

It lives in model.so so that hosts stay thin.
"""

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.shift import Array

GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def penalize(vocabulary: int):
    """Return the TIR function (logits (b, V), history (b, c), length, penalty (b,)) -> (b, V)."""
    b, context = tirx.Var("b", "int64"), tirx.Var("context", "int64")

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
                for v in T.serial(vocabulary):
                    scores[i, v] = logits[i, v]
                for j in T.serial(length[i]):  # from `logits`, so a repeated token counts once
                    token = T.bind(history[i, j])
                    scores[i, token] = T.if_then_else(
                        logits[i, token] > T.float32(0),
                        logits[i, token] / penalty[i],
                        logits[i, token] * penalty[i],
                    )

    return penalize


def soften(vocabulary: int):
    """Return the TIR function (scores (b, V), temperature (b,)) -> weights (b, V)."""
    b = tirx.Var("b", "int64")

    @T.prim_func(s_tir=True, private=True)
    def soften(
        scores: T.Buffer((b, vocabulary), "float32"),
        temperature: T.Buffer((b,), "float32"),
        weights: T.Buffer((b, vocabulary), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "sample_soften"})
        for row in T.serial(b):
            with T.sblock("soften"):
                i = T.axis.spatial(b, row)
                T.reads()
                T.writes()
                best = T.alloc_buffer((1,), "int32", scope="local")
                best[0] = 0
                for v in T.serial(vocabulary):
                    if scores[i, v] > scores[i, best[0]]:
                        best[0] = T.Cast("int32", v)
                if temperature[i] > T.float32(0):
                    for v in T.serial(vocabulary):
                        weights[i, v] = T.exp((scores[i, v] - scores[i, best[0]]) / temperature[i])
                else:
                    for v in T.serial(vocabulary):
                        weights[i, v] = T.Cast("float32", T.Cast("int32", v) == best[0])

    return soften


def keep(vocabulary: int, by_mass: bool):
    """Return the TIR function (weights (b, V), limit (b,)) -> weights (b, V) with the rest zero.

    `by_mass`: the largest weights that together reach `limit` (float32) of the whole (top-p);
    otherwise the `limit` (int32) largest (top-k), 0 meaning all.
    """
    b, dtype = tirx.Var("b", "int64"), "float32" if by_mass else "int32"

    def part(weight):
        return T.Cast("float64", weight) if by_mass else T.float64(1)

    def wanted(limit, total):
        if by_mass:
            return T.Cast("float64", limit) * total
        return T.Cast("float64", T.if_then_else(limit > 0, limit, vocabulary))

    @T.prim_func(s_tir=True, private=True)
    def keep(
        weights: T.Buffer((b, vocabulary), "float32"),
        limit: T.Buffer((b,), dtype),
        kept: T.Buffer((b, vocabulary), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "sample_keep"})
        for row in T.serial(b):
            with T.sblock("keep"):
                i = T.axis.spatial(b, row)
                T.reads()
                T.writes()
                reached = T.alloc_buffer((2,), "float64", scope="local")  # of a candidate, of all
                threshold = T.alloc_buffer((1,), "int32", scope="local")
                reached[1] = T.float64(0)
                for v in T.serial(vocabulary):
                    reached[1] = reached[1] + part(weights[i, v])
                threshold[0] = 0
                for bit in T.serial(31):
                    candidate = T.bind(threshold[0] | (1 << (30 - T.Cast("int32", bit))))
                    reached[0] = T.float64(0)
                    for v in T.serial(vocabulary):
                        reached[0] = reached[0] + T.if_then_else(
                            T.reinterpret("int32", weights[i, v]) >= candidate,
                            part(weights[i, v]),
                            T.float64(0),
                        )
                    if reached[0] >= wanted(limit[i], reached[1]) and reached[0] > T.float64(0):
                        threshold[0] = candidate
                for v in T.serial(vocabulary):
                    kept[i, v] = T.if_then_else(
                        T.reinterpret("int32", weights[i, v]) >= threshold[0],
                        weights[i, v],
                        T.float32(0),
                    )

    return keep


def _signed(constant: int) -> int:
    """Return the int64 with the bits of a uint64 constant (TVM's literals are signed)."""
    return constant - (1 << 64) if constant >> 63 else constant


def _uniform(seed, step):
    def mixed(z, right: int, factor: int):
        return (z ^ (z >> T.uint64(right))) * T.reinterpret("uint64", T.int64(_signed(factor)))

    gammas = T.reinterpret("uint64", T.int64(_signed(GAMMA))) * T.Cast("uint64", step + 1)
    z = mixed(mixed(T.reinterpret("uint64", seed) + gammas, 30, MIX_1), 27, MIX_2)
    return T.Cast("float64", (z ^ (z >> T.uint64(31))) >> T.uint64(11)) * T.float64(2.0**-53)


def draw(vocabulary: int):
    """Return the TIR function (weights (b, V), seed (b,) int64, step (b,) int32) -> tokens (b,)."""
    b = tirx.Var("b", "int64")

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
                running = T.alloc_buffer((2,), "float64", scope="local")  # target, sum so far
                running[0] = T.float64(0)
                running[1] = T.float64(0)
                for v in T.serial(vocabulary):
                    running[0] = running[0] + T.Cast("float64", weights[i, v])
                running[0] = running[0] * _uniform(seed[i], step[i])
                tokens[i] = 0
                for v in T.serial(vocabulary):
                    if running[1] <= running[0] and weights[i, v] > T.float32(0):
                        tokens[i] = T.Cast("int32", v)
                    running[1] = running[1] + T.Cast("float64", weights[i, v])

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
