"""Fit W[n,k] ~ r[n] · s[k] · sum_i c[i] · b_i[n,k] to the linears of one input group.

Each matrix has its own r, c and codes; s is shared. Levels are the 2^q sums of ±c[i]; a weight
takes the level nearest to U = W / (r s), by magnitude, ties away from zero. One round is

    c <- least squares of U by the codes, weighted by (r s)^2, on evenly spaced rows
    codes <- nearest levels
    r <- least squares, row by row, given c, s and the codes
    s <- least squares, column by column, over all matrices, given c, r and the codes

each rounded to sums of powers of two at once, so that the next one makes up for the rounding. The
round with the least squared error wins. Each matrix is first scaled by a power of two to an rms
near 1, which goes back into its exponents at the end: the linears count equally in s, and tiny or
huge weights neither vanish nor overflow.

Chunks of rows are of fixed size and their sums are added in float64 in order, without BLAS: the
result does not depend on the number of threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shiftadd_tvm import bcq, powers
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray
Fitted = tuple[Array, bcq.SeparableScales]

# The sums of signs that approximate N(0, 1) best: what rotated weights look like.
GAUSSIAN = {
    1: (0.798,),
    2: (0.981, 0.529),
    3: (1.157, 0.607, 0.301),
    4: (1.230, 0.744, 0.370, 0.203),
}
_CHUNK = 1 << 16  # weights that are worked on at a time: small enough for a core's cache
_SAMPLE = 1 << 18  # weights by which c is fitted: a handful of numbers needs no more
_ROW_EXPONENT, _PLANE_EXPONENT = 50, 55  # how much of a matrix's own exponent r and c take up


@dataclass
class _Matrix:
    values: Array  # float32 (N, K), rms near 1
    exponent: int  # the true weights are values * 2^exponent
    rows: Array  # r, float32 (N,)
    planes: Array  # c, float64 (bits,), descending

    def chunks(self) -> Iterator[slice]:
        """Yield the rows of each chunk."""
        outputs, inputs = self.values.shape
        step = max(1, _CHUNK // inputs)
        return (slice(start, start + step) for start in range(0, outputs, step))

    def sample(self) -> slice:
        """Return evenly spaced rows."""
        return slice(None, None, -(-self.values.size // _SAMPLE))


def fit(matrices: Sequence[Array], bits: Sequence[int], settings: QuantizeSettings) -> list[Fitted]:
    """Return planes and scales of each float32 (N_i, K) matrix, which is scaled in place."""
    group = [_normalize(matrix) for matrix in matrices]
    columns = _start(group, bits, settings)
    best_error, best = np.inf, _scales(group, columns)
    for _ in range(settings.rounds):
        for matrix in group:
            matrix.planes = _fit_planes(matrix, columns, settings.plane_terms)
        columns, error = _fit_rows_and_columns(group, columns, settings)
        if error < best_error:
            best_error, best = error, _scales(group, columns)
    row_scales, plane_scales, columns = best
    column_codes = powers.round_to_terms(columns, settings.column_terms)
    fitted = []
    for matrix, matrix.rows, matrix.planes in zip(group, row_scales, plane_scales, strict=True):
        scales = encode(matrix.rows, column_codes, matrix.planes, matrix.exponent, settings)
        fitted.append((_pack(matrix, columns), scales))
    return fitted


def nearest_levels(normalized: Array, planes: Array) -> tuple[Array, Array]:
    """Return the indices, uint8, of the nearest of the non-negative levels, and those levels.

    `normalized` is U of any shape, `planes` is c; the sign of U is the sign of the level.
    """
    levels = levels_of(planes)[0]
    magnitude = np.abs(normalized)
    index = np.zeros(normalized.shape, np.uint8)
    for middle in ((levels[1:] + levels[:-1]) / 2).astype(np.float32):
        index += magnitude >= middle
    return index, levels


def levels_of(planes: Array) -> tuple[Array, Array]:
    """Return the 2^(q-1) non-negative sums of ±c[i], ascending, float64, and the planes of each,
    bool (2^(q-1), q)."""
    bits = len(planes)
    signs = (np.arange(1 << bits)[:, None] >> np.arange(bits)) & 1
    sums = (signs * 2 - 1) @ np.asarray(planes, np.float64)
    order = np.argsort(sums, kind="stable")[1 << (bits - 1) :]
    return np.maximum(sums[order], 0.0), signs[order].astype(bool)


def _normalize(matrix: Array) -> _Matrix:
    square = sum(float(np.square(row, dtype=np.float64).sum()) for row in matrix)
    limit = _ROW_EXPONENT + _PLANE_EXPONENT
    exponent = round(np.log2(square / matrix.size) / 2) if square > 0 else 0
    exponent = max(-limit, min(exponent, limit))
    matrix *= np.float32(2.0**-exponent)
    return _Matrix(matrix, exponent, np.ones(len(matrix), np.float32), np.ones(1))


def _start(group: list[_Matrix], bits: Sequence[int], settings: QuantizeSettings) -> Array:
    """Set r to the rms of the rows and c to the better of two starts; return s, float32 (K,)."""
    columns = np.zeros(group[0].values.shape[1])
    for matrix in group:
        matrix.rows = np.sqrt(_row_means(matrix, 1.0))
        for chunk in matrix.chunks():
            columns += np.square(matrix.values[chunk] * _inverse(matrix.rows[chunk, None])).sum(0)
    columns = np.sqrt(columns / sum(len(matrix.values) for matrix in group))
    columns = powers.round_to_powers(columns, settings.column_terms)
    for matrix, count in zip(group, bits, strict=True):
        rows = np.sqrt(_row_means(matrix, _inverse(columns)))
        matrix.rows = powers.round_to_powers(rows, settings.row_terms)
        matrix.planes = _start_planes(matrix, columns, count, settings.plane_terms)
    return columns


def _row_means(matrix: _Matrix, factor: Array | float) -> Array:
    """Return the mean square of each row of values * factor, float32 (N,)."""
    means = [
        np.square(matrix.values[c] * factor).mean(1, dtype=np.float64) for c in matrix.chunks()
    ]
    return np.concatenate(means).astype(np.float32)


def _start_planes(matrix: _Matrix, columns: Array, bits: int, terms: int) -> Array:
    """Return the better of the greedy start (b = sign(rest), c = mean |rest|) and the Gaussian."""
    normalized, weight = _normalized(matrix, columns, matrix.sample())
    rest, greedy = np.abs(normalized), []
    for _ in range(bits):
        greedy.append(float(rest.mean(dtype=np.float64)))
        rest = np.abs(rest - np.float32(greedy[-1]))
    starts = [_round(np.array(start), terms) for start in (greedy, GAUSSIAN[bits])]
    return min(starts, key=lambda planes: _error(normalized, weight, planes))


def _error(normalized: Array, weight: Array, planes: Array) -> float:
    index, levels = nearest_levels(normalized, planes)
    rest = np.abs(normalized) - levels.astype(np.float32)[index]
    return float(np.einsum("nk,nk,nk->n", weight, rest, rest).sum(dtype=np.float64))


def _normalized(matrix: _Matrix, columns: Array, rows: slice) -> tuple[Array, Array]:
    """Return U = W / (r s), 0 where r or s is, and its weight (r s)^2, both float32 (n, K)."""
    scale = matrix.rows[rows, None] * columns
    return _divide(matrix, columns, rows), scale * scale


def _divide(matrix: _Matrix, columns: Array, rows: slice) -> Array:
    # one scale after the other: their product may be too small to have an inverse
    return matrix.values[rows] * _inverse(matrix.rows[rows, None]) * _inverse(columns)


def _inverse(scale: Array) -> Array:
    """Return 1 / scale, and 0 where scale is 0."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def _fit_planes(matrix: _Matrix, columns: Array, terms: int) -> Array:
    """Return the least squares c for the codes of the sampled rows, rounded, float64 (bits,)."""
    normalized, weight = _normalized(matrix, columns, matrix.sample())
    index, _ = nearest_levels(normalized, matrix.planes)
    patterns = levels_of(matrix.planes)[1].T.astype(np.float32) * 2 - 1
    planes = [pattern[index] for pattern in patterns]  # of |U|: the sign cancels in every product
    weighted = [weight * plane for plane in planes]
    gram = [[np.einsum("nk,nk->n", a, b).sum(dtype=np.float64) for b in planes] for a in weighted]
    target = np.abs(normalized)
    right = [np.einsum("nk,nk->n", a, target).sum(dtype=np.float64) for a in weighted]
    return _round(np.linalg.lstsq(np.array(gram), np.array(right), rcond=1e-9)[0], terms)


def _round(planes: Array, terms: int) -> Array:
    return np.sort(np.abs(powers.round_to_powers(planes, terms)))[::-1].astype(np.float64)


def _fit_rows_and_columns(
    group: list[_Matrix], columns: Array, settings: QuantizeSettings
) -> tuple[Array, float]:
    """Set r of every matrix; return s and the squared error of the whole group."""
    square, right, left = 0.0, np.zeros(len(columns)), np.zeros(len(columns))
    for matrix in group:
        for chunk in matrix.chunks():
            values = matrix.values[chunk]
            levels = _levels(matrix, columns, chunk)
            scaled = levels * columns
            norm = np.einsum("nk,nk->n", scaled, scaled)
            rows = np.einsum("nk,nk->n", values, scaled) * _inverse(norm)
            matrix.rows[chunk] = powers.round_to_powers(rows, settings.row_terms)
            levels *= matrix.rows[chunk, None]
            right += np.einsum("nk,nk->k", values, levels)
            left += np.einsum("nk,nk->k", levels, levels)
            square += float(np.einsum("nk,nk->n", values, values).sum(dtype=np.float64))
    columns = powers.round_to_powers(right * _inverse(left), settings.column_terms)
    exact = columns.astype(np.float64)
    return columns, square - 2 * float((exact * right).sum()) + float((exact**2 * left).sum())


def _levels(matrix: _Matrix, columns: Array, chunk: slice) -> Array:
    """Return the nearest level of each weight of a chunk, float32 (n, K)."""
    normalized = _divide(matrix, columns, chunk)
    index, levels = nearest_levels(normalized, matrix.planes)
    found = levels.astype(np.float32).take(index, mode="clip")  # no index is outside: no check
    return np.copysign(found, normalized, out=found)


def _scales(group: list[_Matrix], columns: Array) -> tuple[list[Array], list[Array], Array]:
    return [m.rows.copy() for m in group], [m.planes.copy() for m in group], columns


def _pack(matrix: _Matrix, columns: Array) -> Array:
    """Return the packed planes, uint8 (bits, N, ceil(K / 8))."""
    outputs, inputs = matrix.values.shape
    packed = np.empty((len(matrix.planes), outputs, -(-inputs // 8)), np.uint8)
    patterns = levels_of(matrix.planes)[1].T
    for chunk in matrix.chunks():
        normalized = _divide(matrix, columns, chunk)
        index, _ = nearest_levels(normalized, matrix.planes)
        negative = np.signbit(normalized)
        for plane, pattern in zip(packed, patterns, strict=True):
            plane[chunk] = bcq.pack_planes(pattern.take(index, mode="clip") ^ negative)
    return packed


def encode(
    rows: Array, column_codes: Array, planes: Array, exponent: int, settings: QuantizeSettings
) -> bcq.SeparableScales:
    """Return the term bytes of r, s and c; a matrix's own exponent goes into r and, past its range,
    into c."""
    row_codes = powers.round_to_terms(rows, settings.row_terms)
    plane_codes = powers.round_to_terms(planes, settings.plane_terms)
    shift = int(np.clip(exponent, -_ROW_EXPONENT, _ROW_EXPONENT))
    plane_codes = _shift(plane_codes, exponent - shift)
    return bcq.SeparableScales(_shift(row_codes, shift), column_codes, plane_codes)


def _shift(codes: Array, exponent: int) -> Array:
    """Return term bytes times 2^exponent; terms that fall below the range become absent."""
    moved = (codes & powers.EXPONENT_MASK).astype(np.int32) + exponent
    present = ((codes & powers.EXPONENT_MASK) > 0) & (moved > 0)
    moved = np.minimum(moved, powers.EXPONENT_MASK).astype(np.uint8) | (codes & powers.NEGATIVE)
    return np.where(present, moved, 0).astype(np.uint8)
