"""gemm_half by tensor cores: a warp multiplies 32 rows of planes with 128 rows of activations.

Planes become float16 in registers, in the very words that they are stored in: a bit moves to the sign of
±c, two at a time, and the planes' numbers are added; so each weight is widened once for 128 tokens. Four
warps of a block read the same activations. Sums are float32.
"""

from typing import Any

from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import gemm_half, lut, words
from shiftadd_tvm.ops.shift import apply_terms
from shiftadd_tvm.schedules.cuda import _results
from shiftadd_tvm.schedules.cuda._instructions import ADD_F16, LOAD16, LOAD16_KEPT, MMA_F16

OPS = ("gemm_half",)
WARPS = 4  # of a block: a row block each
TILES = 2  # of 16 rows, in a row block
TOKENS = gemm_half.TILES  # of activations, 8 rows each, that a warp takes
FEWER = ("sm_80", "sm_86", "sm_89")  # take half as many: their assembler needs more registers


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel for the sizes of the function; the number of activations stays symbolic."""
    halves, exponent, planes, plane_terms, row_terms, *bias, y = sch.mod["main"].params
    first = (halves.shape, exponent.shape, planes.shape)
    tokens = TOKENS // 2 if backend.device in FEWER else TOKENS
    return kernel(*first, plane_terms.shape, row_terms.shape, y.shape, bool(bias), tokens)


def _word(p, tile):
    """Return where the 4 words of a plane and a tile of rows begin."""
    return (p * TILES + tile) * 4


def _levels(count: int, terms: int):
    """Return how level[p] and peak[0], the exponent field of the largest, are set: level[p] holds -c[p]
    of the block by the power of two that makes the largest about 1, twice as float16."""

    @T.inline
    def set_levels(level, peak, value, plane_terms, block):
        peak[0] = T.uint32(1)
        for p in T.unroll(count):
            value[0] = apply_terms(T.float32(1), [plane_terms[block, p, t] for t in range(terms)])
            peak[0] = T.max(peak[0], T.shift_right(lut.magnitude(value[0]), T.uint32(23)))
        for p in T.unroll(count):
            value[0] = apply_terms(T.float32(1), [plane_terms[block, p, t] for t in range(terms)])
            unit = T.shift_left(T.uint32(254) - peak[0], T.uint32(23))
            value[0] = T.float32(0) - value[0] * T.reinterpret("float32", unit)
            level[p] = gemm_half.half_bits(value[0])
            level[p] = T.bitwise_or(level[p], T.shift_left(level[p], T.uint32(16)))

    return set_levels


def _widen(count: int):
    """Return how the words of one half step become the left operands of two products: w[8 i + 4 tile + r]
    is register r of product i, of bits u and u + 16 of a word."""

    @T.inline
    def widen(w, v, a, level, half, pair):
        for i, tile, r in T.grid(2, TILES, 4):
            at = T.meta_var((i * TILES + tile) * 4 + r)
            # register r: of row l / 4 + 8 (r % 2), the product's inputs 2 c, 2 c + 1 and + 8 (r / 2)
            places = T.bind(T.Cast("uint32", 15 - (pair * 4 + i * 2 + r // 2)))
            for p in T.unroll(count):
                word = T.meta_var(a[_word(p, tile) + half * 2 + r % 2])
                signs = T.bitwise_and(T.shift_left(word, places), T.uint32(0x80008000))
                v[0] = T.bitwise_xor(signs, level[p])
                if p == 0:
                    w[at] = v[0]
                else:
                    T.evaluate(ADD_F16(T.address_of(w[at]), v[0]))

    return widen


def _multiply(tokens: int):
    """Return how the sums of all tiles of activations get the products of two left operands."""

    @T.inline
    def multiply(acc, w, x, halves, first, s, half, pair, lane):
        for t in T.unroll(tokens):
            at = T.address_of(halves[first + t, s, half, lane, pair * 4])
            T.evaluate(LOAD16_KEPT(T.address_of(x[0]), at))
            for i, rows16 in T.grid(2, TILES):
                sums = T.address_of(acc[(rows16 * tokens + t) * 4])
                left = T.address_of(w[(i * TILES + rows16) * 4])
                T.evaluate(MMA_F16(sums, left, x[i * 2], x[i * 2 + 1]))

    return multiply


def _finish(tokens: int, rows, outputs: int, width: int, biased: bool):
    """Return how a lane's sums become results: register r of a product is of row l / 4 + 8 (r / 2) and of
    token 2 (l % 4) + r % 2."""

    @T.inline
    def finish(acc, peak, value, exponent, row_terms, bias, y, block, first, lane):
        unit = T.bind(T.reinterpret("float32", T.shift_left(peak[0], T.uint32(23))))
        for rows16, t, r in T.grid(TILES, tokens, 4):
            token = T.bind((first + t) * 8 + lane % 4 * 2 + r % 2)
            row = T.bind(block * 32 + rows16 * 16 + r // 2 * 8 + lane // 4)
            if token < rows and row < outputs:
                value[0] = acc[(rows16 * tokens + t) * 4 + r] * unit
                value[1] = lut.unfixed(value[0], exponent[token, 0])
                value[0] = apply_terms(value[1], [row_terms[i, row] for i in range(width)])
                if biased:
                    value[0] = value[0] + bias[row]
                y[token, row] = value[0]

    return finish


def kernel(
    halves_shape: Any,
    exponent_shape: Any,
    planes_shape: Any,
    terms_shape: Any,
    row_shape: Any,
    y_shape: Any,
    biased: bool,
    tokens: int,
) -> PrimFunc:
    """Return the function of halves, exponent, planes, plane and row terms, (bias,) y (n, N)."""
    rows, outputs = y_shape[0], int(y_shape[1])
    blocks, steps, count = (int(size) for size in planes_shape[:3])
    terms, width = int(terms_shape[2]), int(row_shape[0])
    set_levels, widen, multiply = _levels(count, terms), _widen(count), _multiply(tokens)
    finish = _finish(tokens, rows, outputs, width, biased)

    @T.inline
    def body(halves, exponent, planes, plane_terms, row_terms, bias, y):
        part = T.launch_thread("blockIdx.x", -(-blocks // WARPS))
        group = T.launch_thread("blockIdx.y", (rows + (8 * tokens - 1)) // (8 * tokens))
        tx = T.launch_thread("threadIdx.x", 32 * WARPS)
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 2)
        acc = T.alloc_buffer((TILES * tokens * 4,), "float32", scope="local")
        a = T.alloc_buffer((count * TILES * 4,), "uint32", scope="local")
        w = T.alloc_buffer((2 * TILES * 4,), "uint32", scope="local")
        x = T.alloc_buffer((4,), "uint32", scope="local")
        v = T.alloc_buffer((1,), "uint32", scope="local")
        level = T.alloc_buffer((count,), "uint32", scope="local")
        peak = T.alloc_buffer((1,), "uint32", scope="local")
        value = T.alloc_buffer((2,), "float32", scope="local")
        block = T.bind(part * WARPS + tx // 32)
        if block < blocks:
            for i in T.unroll(TILES * tokens * 4):
                acc[i] = T.float32(0)
            set_levels(level, peak, value, plane_terms, block)
            for s in T.serial(steps):
                for p, tile in T.grid(count, TILES):
                    words_ = T.address_of(planes[block, s, p, tile, tx % 32, 0])
                    T.evaluate(LOAD16(T.address_of(a[_word(p, tile)]), words_))
                for half in T.unroll(2):
                    for pair in T.serial(4):
                        widen(w, v, a, level, half, pair)
                        multiply(acc, w, x, halves, group * tokens, s, half, pair, tx % 32)
            finish(acc, peak, value, exponent, row_terms, bias, y, block, group * tokens, tx % 32)

    shapes = (
        *(halves_shape, exponent_shape, (blocks, steps, count, TILES, 32, 4)),
        *((blocks, count, terms), (width, blocks * words.ROWS), (rows, outputs)),
    )
    return _results.function("gemm_half", body, shapes, biased)
