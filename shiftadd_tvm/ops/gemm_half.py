"""gemm_half: many rows of activations times planes in half precision, for tensor cores (prefill on GPUs).

    half_build   e[m], an exponent a row; halves: h[m, k] = x[m, k] / 2^e[m] as float16, |h| <= 2^15
    gemm_half    y[m, n] = 2^e[m] · r[n] · sum_k h[m, k] · sum_p (bit k of n in plane p ? c[p] : -c[p])

Multiplies, and is labelled so. `halves` uint32 (T, KB, 2, 32, 16) is what the lanes of a warp want beside
planes in the order "fragments" (`words.py`):

    [t, s, h, l, u]   inputs k and k + 16 (in the high half), k = 256 s + 128 h + 32 (l % 4) + u,
                      of row 8 t + l // 4; 0 behind the last row and input; T is a multiple of 16

A product of 16 inputs may take them in any order, the same on both sides: a lane holds 32 successive bits
of a row, so those are its inputs. float16 has 11 bits; numbers below 2^-29 of a row's largest become 0.
"""

import numpy as np
from tvm import te
from tvm.tirx import Select, const, reinterpret

from shiftadd_tvm.ops import gemm, lut, words
from shiftadd_tvm.ops.shift import FRACTION_BITS, Array, apply_terms, shift

FORM = lut.Format("half", 15, ())  # magnitudes below 2^15
ORDER = "fragments"
FORMATS = ("fixed16", "bytes16")  # of `lut_bits.py`, with which prefill takes these: 16 bits, here 11
TILE, TILES = 8, 16  # rows of a tile, and tiles that a warp takes
DROPPED = 13  # bits of a float32's fraction that a float16 has not
LEAST = 113  # exponent field of the smallest float16 that is kept
HALVES = words.BITS // 2


def _u32(number: int):
    return const(number, "uint32")


def half_bits(value):
    """Return the bits of a float32 below 2^16 as float16, to the nearest (ties to even), as uint32;
    subnormal ones are 0."""
    bits = reinterpret("uint32", value)
    size = bits & _u32(0x7FFFFFFF)
    odd = (size >> _u32(DROPPED)) & _u32(1)
    rounded = size + _u32((1 << (DROPPED - 1)) - 1) + odd
    moved = (rounded - _u32((LEAST - 1) << FRACTION_BITS)) >> _u32(DROPPED)
    kept = Select(size < _u32(LEAST << FRACTION_BITS), _u32(0), moved)
    return kept | ((bits >> _u32(16)) & _u32(0x8000))


def half_value(bits):
    """Return the float32 of the bits of a float16 that is not subnormal, in uint32."""
    size = (bits & _u32(0x7FFF)) << _u32(DROPPED)
    moved = Select(size == _u32(0), size, size + _u32((LEAST - 1) << FRACTION_BITS))
    return reinterpret("float32", moved | ((bits & _u32(0x8000)) << _u32(16)))


def build(values):
    """Return halves (T, KB, 2, 32, 16) and exponent (n, 1), uint32, of values (n, K) float32."""
    rows, inputs = values.shape[0], int(values.shape[1])
    k = te.reduce_axis((0, inputs), "k")
    peak = te.compute((rows,), lambda m: te.max(lut.magnitude(values[m, k]), axis=k), name="peak")
    high = _u32(FORM.fields[1])
    field = lambda m: lut.field_of(peak[m], FORM)

    def half(m, at):
        row = te.min(m, rows - 1)
        moved = shift(values[row, te.min(at, inputs - 1)], high - te.min(field(row), high))
        finite = te.all(m < rows, at < inputs, field(row) <= high)
        return te.if_then_else(finite, half_bits(moved), _u32(0))

    def pair(t, s, h, lane, u):
        first = s * 256 + h * 128 + lane % 4 * words.BITS + u
        row = t * TILE + lane // 4
        return half(row, first) | (half(row, first + HALVES) << _u32(16))

    tiles = (rows + (TILE * TILES - 1)) // (TILE * TILES) * TILES
    shape = (tiles, words.steps(inputs, ORDER), 2, 32, HALVES)
    halves = te.compute(shape, pair, name="halves")
    exponent = te.compute((rows, 1), lambda m, i: lut.exponent_of(field(m), FORM), name="exponent")
    return [halves, exponent]


def product(halves, exponent, planes, plane_terms, row_terms, outputs: int, bias=None):
    """Return y (n, N) float32 of the results of `build` and a separable packed linear (`lut.query`)."""
    rows, length = exponent.shape[0], int(halves.shape[1]) * words.STEP[ORDER]
    count, terms = int(planes.shape[2]), int(plane_terms.shape[2])
    w, i = te.reduce_axis((0, length), "w"), te.reduce_axis((0, words.BITS), "i")
    one = const(1.0, "float32")

    def weight(n):
        total = None
        for p in range(count):
            codes = [plane_terms[n // words.ROWS, p, t] for t in range(terms)]
            level = apply_terms(one, codes)
            bit = (words.word(planes, p, n, w) >> i.astype("uint32")) & _u32(1)
            signed = Select(bit == _u32(1), level, -level)
            total = signed if total is None else total + signed
        return total

    def value(m):
        lane = m % TILE * 4 + w % 4
        both = halves[m // TILE, w // 8, w % 8 // 4, lane, i % HALVES]
        return half_value((both >> (i // HALVES * 16).astype("uint32")) & _u32(0xFFFF))

    sums = te.compute(
        (rows, outputs), lambda m, n: te.sum(value(m) * weight(n), axis=[w, i]), name="sums"
    )
    scaled = lambda m, n: lut.unfixed(sums[m, n], exponent[m, 0])
    return lut.scale_rows(scaled, (rows, outputs), row_terms, bias)


def reference_halves(values: Array) -> tuple[Array, Array]:
    """Return the numbers h (n, K) as float16, and the exponent of each row + 64 (n,)."""
    moved, exponents = lut.reference_moved(values, FORM)
    kept = np.abs(moved) >= np.float32(2.0 ** (LEAST - 127))
    return np.where(kept, moved, np.copysign(np.float32(0), moved)).astype(np.float16), exponents


def reference_build(values: Array) -> tuple[Array, Array]:
    """Return halves (T, KB, 2, 32, 16) and exponent (n, 1), uint32, of values (n, K) float32."""
    found, exponents = reference_halves(values)
    rows, inputs = found.shape
    tiles, steps = -(-rows // (TILE * TILES)) * TILES, words.steps(inputs, ORDER)
    padded = np.zeros((tiles * TILE, steps * 256), np.uint16)
    padded[:rows, :inputs] = found.view(np.uint16)
    parts = padded.reshape(tiles, TILE, steps, 2, 4, 2, HALVES).astype(np.uint32)
    pairs = parts[..., 0, :] | parts[..., 1, :] << 16  # (t, row, s, h, l % 4, u)
    halves = pairs.transpose(0, 2, 3, 1, 4, 5).reshape(tiles, steps, 2, 32, HALVES)
    return np.ascontiguousarray(halves), exponents[:, None].astype(np.uint32)


def reference_product(
    values: Array, planes: Array, plane_terms: Array, row_terms: Array, bias: Array | None = None
) -> Array:
    """Return y (n, N) float32 of values (n, K) float32 (not of halves), and what `gemm.reference_planes`
    takes."""
    found, exponents = reference_halves(values)
    held = lut.reference_unfixed(found.astype(np.float32), exponents)
    return gemm.reference_planes(held, planes, plane_terms, row_terms, bias)


REFERENCES = {"half_build": reference_build, "gemm_half": reference_product}
