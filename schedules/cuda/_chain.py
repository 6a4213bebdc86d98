"""The steps of a chain (`fused_producers.py`) in registers: where its row begins, and what is done to it.

What belongs to no input is 0. How a row lies in registers is told in `_runs.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from shiftadd_tvm.ops.activation import FUNCTIONS
from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.hadamard import exponent
from shiftadd_tvm.ops.scores import LOWEST
from shiftadd_tvm.ops.shift import SIGN_BIT, apply_terms, is_safe, shift, shift_safe
from shiftadd_tvm.schedules.cuda._instructions import (
    ADD_FLOATS_ACROSS,
    BALLOT,
    LAUNCH_NEXT,
    TAKE_ACROSS,
    WAIT,
)
from shiftadd_tvm.schedules.cuda._runs import Row

SHARES = 2048  # of attention's parts, at most

# inlined code of (x, r, v, sums, given, i, warp, lane): the row, parameters of its inputs in registers
# (weights, biases, and packed: three bytes of terms, a bit of signs), and what threads add together
Inline = Callable[..., Any]


def in_order(first: Inline, second: Inline) -> Inline:
    """Return the inlined code of both."""

    @T.inline
    def both(x, r, v, sums, given, i, warp, lane):
        first(x, r, v, sums, given, i, warp, lane)
        second(x, r, v, sums, given, i, warp, lane)

    return both


@T.inline
def wait(x, r, v, sums, given, i, warp, lane):
    """Let the next kernel begin, and wait for those before."""
    T.evaluate(LAUNCH_NEXT())
    T.evaluate(WAIT())


def begin(row: Row, op: str, key: Sequence[Any], at: Sequence[int], shape: Sequence[int]) -> Inline:
    """Return how x (row.held,) is set to what operator `op` makes of the operands `at` of `given`;
    `shape` is that of the first one."""
    if op == "join":
        return _join(row, at, shape)
    value = {
        "": lambda given, i, k: given[at[0]][i, k],
        "add": lambda given, i, k: given[at[0]][i, k] + given[at[1]][i, k],
        "activate": lambda given, i, k: FUNCTIONS[key[0]](given[at[0]][i, k + key[2]]),
        "activate_mul": lambda given, i, k: (
            FUNCTIONS[key[0]](given[at[0]][i, k + key[2]]) * given[at[1]][i, k + key[3]]
        ),
    }[op]

    @T.inline
    def set_(x, r, v, sums, given, i, warp, lane):
        for n in T.unroll(row.held):
            x[n] = T.float32(0)
            if row.input(n, warp, lane) < row.inputs:
                x[n] = value(given, i, row.input(n, warp, lane))

    return set_


def _join(row: Row, at: Sequence[int], shape: Sequence[int]) -> Inline:
    """Return `begin` of attention's parts: each has a share of a head's weight, which is 0 where it has
    no positions; what it found is not read then."""
    found, states = at
    count = int(shape[1])
    threads = 32 * row.warps

    @T.inline
    def set_(x, r, v, sums, given, i, warp, lane):
        heads = T.meta_var(int(given[states].shape[3]))
        share = T.alloc_buffer((count * heads,), "float32", scope="shared")
        for turn in T.unroll(-(-count * heads // threads)):
            item = T.bind(turn * threads + warp * 32 + lane)
            if item < count * heads:
                head = T.bind(item % heads)
                v[0] = T.float32(LOWEST)
                v[1] = T.float32(0)
                for p in T.unroll(count):
                    v[0] = T.max(v[0], given[states][i, p, 0, head])
                for p in T.unroll(count):
                    v[1] = v[1] + exp(given[states][i, p, 0, head] - v[0]) * given[states][i, p, 1, head]
                share[item] = T.if_then_else(
                    given[states][i, item // heads, 1, head] != T.float32(0),
                    exp(given[states][i, item // heads, 0, head] - v[0]) / v[1],
                    T.float32(0),
                )
        T.tvm_storage_sync("shared")
        for n in T.unroll(row.held):
            x[n] = T.float32(0)
            if row.input(n, warp, lane) < row.inputs:
                k = T.bind(row.input(n, warp, lane))
                for p in T.unroll(count):
                    v[0] = share[p * heads + k // (row.inputs // heads)]
                    if v[0] != T.float32(0):
                        x[n] = x[n] + v[0] * given[found][i, p, k]

    return set_


def keep(row: Row, out: Any) -> Inline:
    """Return how x is written, where others read it too; `out` finds the tensor among `given`."""

    @T.inline
    def write(x, r, v, sums, given, i, warp, lane):
        for n in T.unroll(row.held):
            if row.input(n, warp, lane) < row.inputs:
                given[out][i, row.input(n, warp, lane)] = x[n]

    return write


@T.inline
def _add_threads(v, sums, slot, warps, warp, lane):
    """Make v[0] the sum of all threads' v[0]: the same in each."""
    for j in T.unroll(5):
        T.evaluate(ADD_FLOATS_ACROSS(T.address_of(v[0]), T.uint32(1) << T.Cast("uint32", j)))
    if lane == 0:
        sums[slot, warp] = v[0]
    T.tvm_storage_sync("shared")
    v[0] = T.float32(0)
    if lane < warps:
        v[0] = sums[slot, lane]
    for j in T.unroll(5):
        T.evaluate(ADD_FLOATS_ACROSS(T.address_of(v[0]), T.uint32(1) << T.Cast("uint32", j)))


@dataclass(frozen=True)
class Link:
    """A step of a chain: what of its parameters comes into registers r before the row is there, and what
    it then does to x."""

    prepare: Inline
    apply: Inline


def rms_norm(row: Row, key: Sequence[Any], at: Sequence[int], shape: Sequence[int]) -> Link:
    """Return `elementwise.rms_norm` of x."""
    share, epsilon = 1.0 / row.inputs, key[0]

    @T.inline
    def norm(x, r, v, sums, given, i, warp, lane):
        v[0] = T.float32(0)
        for n in T.unroll(row.held):
            v[0] = v[0] + x[n] * x[n]
        _add_threads(v, sums, 0, row.warps, warp, lane)
        v[0] = T.float32(1) / T.sqrt(v[0] * T.float32(share) + T.float32(epsilon))
        for n in T.unroll(row.held):
            x[n] = x[n] * v[0] * r[0][n]

    return Link(_weights(row, at, 0), norm)


def _weights(row: Row, at: Sequence[int], which: int) -> Inline:
    """Return how a weight of each input, 0 behind the last one, comes into r[which]."""

    @T.inline
    def load(x, r, v, sums, given, i, warp, lane):
        for n in T.unroll(row.held):
            r[which][n] = T.float32(0)
            if row.input(n, warp, lane) < row.inputs:
                r[which][n] = given[at[which]][row.input(n, warp, lane)]

    return load


def layer_norm(row: Row, key: Sequence[Any], at: Sequence[int], shape: Sequence[int]) -> Link:
    """Return `elementwise.layer_norm` of x."""
    share, epsilon = 1.0 / row.inputs, key[0]

    @T.inline
    def norm(x, r, v, sums, given, i, warp, lane):
        v[0] = T.float32(0)
        for n in T.unroll(row.held):
            v[0] = v[0] + x[n]
        _add_threads(v, sums, 0, row.warps, warp, lane)
        v[1] = v[0] * T.float32(share)
        v[0] = T.float32(0)
        for n in T.unroll(row.held):
            if row.input(n, warp, lane) < row.inputs:
                x[n] = x[n] - v[1]
                v[0] = v[0] + x[n] * x[n]
        _add_threads(v, sums, 1, row.warps, warp, lane)
        v[0] = T.float32(1) / T.sqrt(v[0] * T.float32(share) + T.float32(epsilon))
        for n in T.unroll(row.held):
            x[n] = x[n] * v[0] * r[0][n] + r[1][n]

    return Link(in_order(_weights(row, at, 0), _weights(row, at, 1)), norm)


@T.inline
def _all_safe(x, v, held):
    """Set v[0] to 1 where no number of the warp needs a guard of `shift`, else to 0."""
    ballot = T.alloc_buffer((2,), "uint32", scope="local")
    ballot[0] = T.uint32(1)
    for n in T.unroll(held):
        ballot[0] = T.Select(is_safe(x[n]), ballot[0], T.uint32(0))
    T.evaluate(BALLOT(T.address_of(ballot[1]), ballot[0]))
    v[0] = T.Select(ballot[1] == T.uint32(0xFFFFFFFF), T.float32(1), T.float32(0))


def hadamard(row: Row, key: Sequence[Any], at: Sequence[int], shape: Sequence[int]) -> Link:
    """Return `hadamard.rotate` of x; signs are a bit of r[2]."""
    distances = (key[0] - 1).bit_length()
    between = min(distances, 5)
    scale = exponent(key[0])

    @T.inline
    def load(x, r, v, sums, given, i, warp, lane):
        for n in T.unroll(row.held):
            k = T.meta_var(row.input(n, warp, lane))
            if k < row.inputs:
                byte = T.Cast("uint32", given[at[0]][k // 8])
                kept = T.shift_right(byte, T.Cast("uint32", k % 8))
                r[2][n] = T.bitwise_or(r[2][n], T.shift_left(kept, T.uint32(31)))

    @T.inline
    def rotate(x, r, v, sums, given, i, warp, lane):
        for n in T.unroll(row.held):  # a bit that is 0 turns the sign
            turned = T.bitwise_and(T.bitwise_not(r[2][n]), T.uint32(SIGN_BIT))
            x[n] = T.reinterpret("float32", T.bitwise_xor(T.reinterpret("uint32", x[n]), turned))
        for j in T.unroll(between):
            # the upper one of two lanes takes what it has from what the other has
            upper = T.bind(T.shift_left(T.Cast("uint32", T.shift_right(lane, j)), T.uint32(31)))
            for n in T.unroll(row.held):
                T.evaluate(
                    TAKE_ACROSS(T.address_of(v[0]), x[n], T.uint32(1) << T.Cast("uint32", j))
                )
                own = T.meta_var(T.bitwise_xor(T.reinterpret("uint32", x[n]), upper))
                x[n] = v[0] + T.reinterpret("float32", own)
        for j in T.unroll(distances - between):
            for m in T.unroll(row.held // 2):
                step = T.meta_var(T.shift_left(1, j))
                low = T.meta_var(m // step * (2 * step) + m % step)
                v[0] = x[low]
                x[low] = v[0] + x[low + step]
                x[low + step] = v[0] - x[low + step]
        _all_safe(x, v, row.held)
        if v[0] != T.float32(0):
            for n in T.unroll(row.held):
                x[n] = shift_safe(x[n], scale)
        else:
            for n in T.unroll(row.held):
                x[n] = shift(x[n], scale)

    return Link(load, rotate)


def scaled(row: Row, key: Sequence[Any], at: Sequence[int], shape: Sequence[int]) -> Link:
    """Return `shift.scale_columns` of x; terms are bytes of r[2]."""
    terms = shape[0]

    @T.inline
    def load(x, r, v, sums, given, i, warp, lane):
        for n, t in T.grid(row.held, terms):
            if row.input(n, warp, lane) < row.inputs:
                code = T.Cast("uint32", given[at[0]][t, row.input(n, warp, lane)])
                r[2][n] = T.bitwise_or(r[2][n], T.shift_left(code, T.Cast("uint32", 8 * t)))

    @T.inline
    def scale(x, r, v, sums, given, i, warp, lane):
        _all_safe(x, v, row.held)
        if v[0] != T.float32(0):
            for n in T.unroll(row.held):
                x[n] = apply_terms(x[n], _codes(r[2][n], terms), shift_safe)
        else:
            for n in T.unroll(row.held):
                x[n] = apply_terms(x[n], _codes(r[2][n], terms))

    return Link(load, scale)


def _codes(packed: Any, terms: int) -> list[Any]:
    """Return the term bytes of an input."""
    return [T.Cast("uint8", T.shift_right(packed, T.uint32(8 * t))) for t in range(terms)]


LINKS = {"rms_norm": rms_norm, "layer_norm": layer_norm, "hadamard": hadamard, "shift": scaled}
