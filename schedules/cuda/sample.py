"""sample on GPUs: a block of threads for each row; sums and searches meet in shared memory."""

import functools

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP, sample
from shiftadd_tvm.ops.elementwise import EXP_LOWEST, exp

OPS = ("sample_penalize", "sample_soften", "sample_keep", "sample_draw")
THREADS = 256
HALVES = THREADS.bit_length() - 1


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel of the operator for the vocabulary of the function."""
    function = sch.mod["main"]
    vocabulary = int(function.params[0].shape[1])
    op = str(function.attrs[OP])
    if op == "sample_keep":
        return keep(vocabulary, bool(function.attrs[sample.BY_MASS]))
    return {"penalize": penalize, "soften": soften, "draw": draw}[op.removeprefix("sample_")](
        vocabulary
    )


@functools.cache
def penalize(vocabulary: int) -> PrimFunc:
    """Return `ops.sample.penalize` for threads."""
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
        i = T.launch_thread("blockIdx.x", b)
        tx = T.launch_thread("threadIdx.x", THREADS)
        for step in T.serial((vocabulary + THREADS - 1) // THREADS):
            if step * THREADS + tx < vocabulary:
                scores[i, step * THREADS + tx] = logits[i, step * THREADS + tx]
        T.tvm_storage_sync("shared")
        if penalty[i] != T.float32(1):
            for step in T.serial((length[i] + THREADS - 1) // THREADS):
                if step * THREADS + tx < length[i]:
                    # from `logits`: a repeated token counts once
                    token = T.bind(history[i, step * THREADS + tx])
                    scores[i, token] = T.if_then_else(
                        logits[i, token] > T.float32(0),
                        logits[i, token] / penalty[i],
                        logits[i, token] * penalty[i],
                    )

    return penalize


@functools.cache
def soften(vocabulary: int) -> PrimFunc:
    """Return `ops.sample.soften` for threads."""
    b = tirx.Var("b", "int64")
    steps = -(-vocabulary // THREADS)

    @T.prim_func(s_tir=True, private=True)
    def soften(
        scores: T.Buffer((b, vocabulary), "float32"),
        temperature: T.Buffer((b,), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "sample_soften"})
        i = T.launch_thread("blockIdx.x", b)
        tx = T.launch_thread("threadIdx.x", THREADS)
        peak = T.alloc_buffer((THREADS,), "float32", scope="shared")
        at = T.alloc_buffer((THREADS,), "int32", scope="shared")
        best = T.alloc_buffer((1,), "float32", scope="local")
        token = T.alloc_buffer((1,), "int32", scope="local")
        found = T.alloc_buffer((1,), "float32", scope="local")
        place = T.alloc_buffer((1,), "int32", scope="local")
        best[0] = T.float32("-inf")
        token[0] = 0  # NaNs are passed over
        for step in T.serial(steps):
            if step * THREADS + tx < vocabulary:
                if scores[i, step * THREADS + tx] > best[0]:
                    best[0] = scores[i, step * THREADS + tx]
                    token[0] = step * THREADS + tx
        peak[tx] = best[0]
        at[tx] = token[0]
        T.tvm_storage_sync("shared")
        for half in T.serial(HALVES):  # rotations: in the end everyone has seen everyone
            other = T.bind((tx + T.shift_right(THREADS // 2, half)) % THREADS)
            # TVM finds no barriers for what a condition reads
            found[0] = peak[other]
            place[0] = at[other]
            T.tvm_storage_sync("shared")
            if found[0] > best[0] or (found[0] == best[0] and place[0] < token[0]):
                best[0] = found[0]
                token[0] = place[0]
            peak[tx] = best[0]
            at[tx] = token[0]
            T.tvm_storage_sync("shared")
        for step in T.serial(steps):
            v = T.bind(step * THREADS + tx)
            if v < vocabulary:
                if temperature[i] > T.float32(0):
                    power = T.bind((scores[i, v] - best[0]) / temperature[i])
                    scores[i, v] = T.Select(power < T.float32(EXP_LOWEST), T.float32(0), exp(power))
                else:
                    scores[i, v] = T.if_then_else(v == token[0], T.float32(1), T.float32(0))

    return soften


@functools.cache
def keep(vocabulary: int, by_mass: bool) -> PrimFunc:
    """Return `ops.sample.keep` for threads."""
    b, dtype = tirx.Var("b", "int64"), "float32" if by_mass else "int32"
    sums = "float64" if by_mass else "int32"
    steps, zero = -(-vocabulary // THREADS), tirx.const(0, sums)

    def part(weight):
        return T.Cast("float64", weight) if by_mass else T.int32(1)

    def limits(limit):
        return limit < T.float32(1) if by_mass else tirx.all(limit > 0, limit < vocabulary)

    def wanted(limit, total):
        return T.Cast("float64", limit) * total if by_mass else limit

    @T.inline
    def total(weights, reached, own, candidate, i, tx):
        """Set reached[0] to the sum or count of the weights whose bits are at least `candidate`."""
        own[0] = zero
        for step in T.serial(steps):
            if step * THREADS + tx < vocabulary:
                weight = T.bind(weights[i, step * THREADS + tx])
                if T.reinterpret("int32", weight) >= candidate:
                    own[0] = own[0] + part(weight)
        T.tvm_storage_sync("shared")  # everyone has read the last sum
        reached[tx] = own[0]
        T.tvm_storage_sync("shared")
        for half in T.serial(HALVES):
            if tx < T.shift_right(THREADS // 2, half):
                reached[tx] = reached[tx] + reached[tx + T.shift_right(THREADS // 2, half)]
            T.tvm_storage_sync("shared")

    @T.prim_func(s_tir=True, private=True)
    def keep(weights: T.Buffer((b, vocabulary), "float32"), limit: T.Buffer((b,), dtype)):
        T.func_attr({"tirx.noalias": True, OP: "sample_keep"})
        i = T.launch_thread("blockIdx.x", b)
        tx = T.launch_thread("threadIdx.x", THREADS)
        reached = T.alloc_buffer((THREADS,), sums, scope="shared")
        own = T.alloc_buffer((2,), sums, scope="local")  # sum, goal
        threshold = T.alloc_buffer((1,), "int32", scope="local")
        if limits(limit[i]):
            total(weights, reached, own, 0, i, tx)
            own[1] = wanted(limit[i], reached[0])
            threshold[0] = 0
            for bit in T.serial(31):
                candidate = T.bind(threshold[0] | T.shift_left(1, 30 - bit))
                total(weights, reached, own, candidate, i, tx)
                own[0] = reached[0]
                if own[0] >= own[1] and own[0] > zero:
                    threshold[0] = candidate
            for step in T.serial(steps):
                if step * THREADS + tx < vocabulary:
                    weight = T.bind(weights[i, step * THREADS + tx])
                    if T.reinterpret("int32", weight) < threshold[0]:
                        weights[i, step * THREADS + tx] = T.float32(0)

    return keep


@functools.cache
def draw(vocabulary: int) -> PrimFunc:
    """Return `ops.sample.draw` for threads: each sums a run of tokens, one looks through a run."""
    b = tirx.Var("b", "int64")
    run = -(-vocabulary // THREADS)

    @T.prim_func(s_tir=True, private=True)
    def draw(
        weights: T.Buffer((b, vocabulary), "float32"),
        seed: T.Buffer((b,), "int64"),
        step: T.Buffer((b,), "int32"),
        tokens: T.Buffer((b,), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: "sample_draw"})
        i = T.launch_thread("blockIdx.x", b)
        tx = T.launch_thread("threadIdx.x", THREADS)
        runs = T.alloc_buffer((THREADS,), "float64", scope="shared")
        own = T.alloc_buffer((3,), "float64", scope="local")  # sum, target, sum before the run
        chosen = T.alloc_buffer((2,), "int32", scope="local")
        own[0] = T.float64(0)
        for v in T.serial(run):
            if tx * run + v < vocabulary:
                own[0] = own[0] + T.Cast("float64", weights[i, tx * run + v])
        runs[tx] = own[0]
        T.tvm_storage_sync("shared")
        if tx == 0:
            own[0] = T.float64(0)
            for other in T.serial(THREADS):
                own[0] = own[0] + runs[other]
            own[1] = own[0] * sample.uniform(seed[i], step[i])
            own[0] = T.float64(0)
            own[2] = T.float64(0)
            chosen[0] = 0
            for other in T.serial(THREADS):
                mass = T.bind(runs[other])
                if own[0] <= own[1] and mass > T.float64(0):
                    chosen[0] = other
                    own[2] = own[0]
                own[0] = own[0] + mass
            chosen[1] = 0
            for v in T.serial(run):
                token = T.bind(chosen[0] * run + v)
                if token < vocabulary:
                    if own[2] <= own[1] and weights[i, token] > T.float32(0):
                        chosen[1] = token
                    own[2] = own[2] + T.Cast("float64", weights[i, token])
            tokens[i] = chosen[1]

    return draw
