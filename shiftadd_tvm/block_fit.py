"""Fit W ~ sum_i a_i · b_i where a block of R rows x C columns shares one a_i per plane.

The paper's alternating fit (ShiftAddLLM, section 4.1), batched over blocks, each of them a group w:

    greedy     rest = w; b_i = sign(rest), a_i = mean |rest|, rest -= a_i b_i
    rounds x   a <- conjugate gradient on (B'B) a = B'w, q steps from the previous a
               a <- |a|, descending, rounded to signed sums of powers of two
               codes <- the nearest of the 2^q sums of ±a_i, ties upwards

It differs from the reference implementation in two places: a is rounded also where no round runs
(rounds = 0, one bit), and sign(0) is +1, since a code has no zero. A block that the matrix cuts off
is fitted on what there is of it.
"""

from collections.abc import Callable, Iterator

import numpy as np

from shiftadd_tvm import bcq, powers
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray
Fitted = tuple[Array, bcq.BlockScales]
RoundScales = Callable[[Array], tuple[Array, Array]]  # scales (G, q) -> how stored, values (G, q)

_CHUNK = 1 << 17  # weights that are fitted at a time, a whole block at least
_TINY = 1e-6  # what the reference adds to both denominators of its conjugate gradient


def fit(matrix: Array, bits: int, settings: QuantizeSettings) -> Fitted:
    """Return planes and scales of a float32 (N, K) matrix."""
    outputs, inputs = matrix.shape
    rows, columns = (
        asked or size for asked, size in zip(settings.block, matrix.shape, strict=True)
    )
    blocks = (-(-outputs // rows), -(-inputs // columns))
    flags = np.zeros((bits, outputs, inputs), bool)
    codes = np.zeros((bits, *blocks, settings.block_terms), np.uint8)
    for part in _parts(blocks, rows * columns):
        low, high = part[0].start * rows, part[0].stop * rows
        left, right = part[1].start * columns, part[1].stop * columns
        piece = matrix[low:high, left:right]
        groups = to_groups(piece, rows, columns)
        present = to_groups(np.ones(piece.shape, np.float32), rows, columns)
        planes, terms = fit_groups(groups, present, bits, settings.rounds, settings.block_terms)
        codes[:, part[0], part[1]] = np.moveaxis(terms, 0, 1).reshape(codes[:, *part].shape)
        for flag, plane in zip(flags, planes, strict=True):
            flag[low:high, left:right] = _from_groups(plane, piece.shape, rows, columns)
    return bcq.pack_planes(flags), bcq.BlockScales(rows, columns, codes)


def _parts(blocks: tuple[int, int], size: int) -> Iterator[tuple[slice, slice]]:
    """Yield rectangles of whole blocks of at most `_CHUNK` weights."""
    width = max(1, min(blocks[1], _CHUNK // size))
    height = max(1, _CHUNK // (size * width))
    for top in range(0, blocks[0], height):
        for left in range(0, blocks[1], width):
            bottom, right = min(top + height, blocks[0]), min(left + width, blocks[1])
            yield slice(top, bottom), slice(left, right)


def to_groups(piece: Array, rows: int, columns: int) -> Array:
    """Return (n, k) as (blocks, rows * columns), float64, padded with zeros."""
    height, width = -(-piece.shape[0] // rows), -(-piece.shape[1] // columns)
    padded = np.zeros((height * rows, width * columns))
    padded[: piece.shape[0], : piece.shape[1]] = piece
    blocks = padded.reshape(height, rows, width, columns).transpose(0, 2, 1, 3)
    return blocks.reshape(height * width, rows * columns)


def _from_groups(groups: Array, shape: tuple[int, ...], rows: int, columns: int) -> Array:
    """Undo `to_groups` and cut the padding off."""
    height, width = -(-shape[0] // rows), -(-shape[1] // columns)
    blocks = groups.reshape(height, width, rows, columns).transpose(0, 2, 1, 3)
    return blocks.reshape(height * rows, width * columns)[: shape[0], : shape[1]]


def fit_groups(
    groups: Array, present: Array, bits: int, rounds: int, terms: int
) -> tuple[Array, Array]:
    """Return planes, bool (bits, G, L), and term bytes (G, bits, terms) of float64 groups (G, L).

    `present` (G, L) is 1 where there is a weight and 0 in the padding.
    """
    return alternate(groups, present, bits, rounds, lambda scales: _round(scales, terms))


def alternate(
    groups: Array, present: Array, bits: int, rounds: int, round_scales: RoundScales
) -> tuple[Array, Array]:
    """Return planes, bool (bits, G, L), and the scales as `round_scales` has them stored."""
    planes, scales = _greedy(groups, present, bits)
    if rounds == 0 or bits == 1:
        stored, values = round_scales(scales)
        return _nearest(groups, values), stored
    for _ in range(rounds):
        scales = _least_squares(groups, present, planes, scales)
        stored, scales = round_scales(scales)
        planes = _nearest(groups, scales)
    return planes, stored


def _greedy(groups: Array, present: Array, bits: int) -> tuple[Array, Array]:
    rest, count = groups, present.sum(1)
    planes, scales = [], []
    for _ in range(bits):
        scale = (np.abs(rest) * present).sum(1) / count
        planes.append(rest >= 0)
        scales.append(scale)
        rest = rest - scale[:, None] * _signs(planes[-1])
    return np.array(planes), np.stack(scales, 1)


def _signs(planes: Array) -> Array:
    return planes * 2.0 - 1.0


def _least_squares(groups: Array, present: Array, planes: Array, scales: Array) -> Array:
    """Return q steps of conjugate gradient from `scales` (G, q)."""
    signed = _signs(planes) * present
    gram = np.einsum("igl,jgl->gij", signed, signed)
    residual = np.einsum("igl,gl->gi", signed, groups) - np.einsum("gij,gj->gi", gram, scales)
    direction, square = residual, (residual**2).sum(1)
    for _ in range(len(planes)):
        image = np.einsum("gij,gj->gi", gram, direction)
        step = square / ((direction * image).sum(1) + _TINY)
        scales = scales + step[:, None] * direction
        residual = residual - step[:, None] * image
        previous, square = square, (residual**2).sum(1)
        direction = residual + (square / (previous + _TINY))[:, None] * direction
    return scales


def _round(scales: Array, terms: int) -> tuple[Array, Array]:
    """Return the term bytes (G, q, terms) and values, float64 (G, q), of |scales|, descending."""
    codes = powers.round_to_terms(-np.sort(-np.abs(scales), axis=1), terms)
    return codes, powers.decode_terms(codes).astype(np.float64)


def _nearest(groups: Array, scales: Array) -> Array:
    """Return the planes, bool (q, G, L), of the nearest sums of ±scales (G, q), ties upwards."""
    sums, numbers = levels(scales)
    index = np.zeros(groups.shape, np.intp)
    for middle in ((sums[:, 1:] + sums[:, :-1]) / 2).T:
        index += groups >= middle[:, None]
    return planes_of(np.take_along_axis(numbers, index, 1), scales.shape[1])


def levels(scales: Array) -> tuple[Array, Array]:
    """Return the sums of ±scales (G, q), ascending, (G, 2^q), and the number of each: bit i of it says
    that plane i has +1."""
    sums = scales @ _signs(planes_of(np.arange(1 << scales.shape[1]), scales.shape[1]))
    order = np.argsort(sums, axis=1, kind="stable")
    return np.take_along_axis(sums, order, 1), order


def planes_of(numbers: Array, bits: int) -> Array:
    """Return the planes, bool (bits, ...), of the numbers of levels (...)."""
    return np.stack([(numbers >> plane) & 1 for plane in range(bits)]).astype(bool)
